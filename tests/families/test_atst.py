"""ATST against a slow, plain implementation: one window of one utterance at a time, loops over heads."""

import argparse
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchaudio
from torch import Tensor

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.loading import load_upstream
from upstreams.atst.config import PRESETS, AtstConfig
from upstreams.atst.model import AtstUpstream, build

WIDTH, HEADS, DEPTH, POSITIONS = 128, 2, 2, 10
WINDOW = 4 * POSITIONS + 1  # frames, of which the last fills no patch


def random_state(kind: str, *, seed: int = 0) -> dict[str, Tensor]:
    """Weights of an encoder by audiossl's names and shapes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, mean: float = 0.0) -> Tensor:
        return mean + torch.randn(shape, generator=generator) * (0.2 if len(shape) == 1 else 0.5 / math.sqrt(shape[-1]))

    state = {
        "pos_embed": 5 * normal(1, POSITIONS + 1, WIDTH), "mask_embed": normal(1, 1, WIDTH),
        "patch_embed.patch_embed.weight": 4 * normal(WIDTH, 256), "patch_embed.patch_embed.bias": normal(WIDTH),
    }  # fmt: skip
    if kind == "clip":
        state["cls_token"] = 5 * normal(1, 1, WIDTH)
    for block in range(DEPTH):
        at = f"blocks.{block}."
        state |= {at + "attn.qkv.weight": 3 * normal(3 * WIDTH, WIDTH)}
        for name, shape in (("attn.proj", (WIDTH, WIDTH)), ("mlp.fc1", (512, WIDTH)), ("mlp.fc2", (WIDTH, 512))):
            state |= {f"{at}{name}.weight": normal(*shape), f"{at}{name}.bias": normal(shape[0])}
        for name in ("norm1", "norm2"):
            state |= {f"{at}{name}.weight": normal(WIDTH, mean=1.0), f"{at}{name}.bias": normal(WIDTH)}
    norm = "norm" if kind == "clip" else "norm_frame"
    return state | {f"{norm}.weight": normal(WIDTH, mean=1.0), f"{norm}.bias": normal(WIDTH)}


def spectrum(waveform: Tensor) -> Tensor:
    """(S,) -> (64, T) of an utterance alone, as audiossl's transforms."""
    mel = torchaudio.transforms.MelSpectrogram(
        16_000, f_min=60, f_max=7800, hop_length=160, win_length=1024, n_fft=1024, n_mels=64
    )(waveform[None])
    decibels = torchaudio.transforms.AmplitudeToDB(stype="power", top_db=80)(mel)[0]
    scaled: Tensor = (decibels + 79.6482) / (50.6842 + 79.6482) * 2 - 1
    return scaled


def reference(state: dict[str, Tensor], waveform: Tensor, *, window: int = WINDOW) -> tuple[list[Tensor], Tensor]:
    """Hidden states [(T, D)] before the closing norm, and the authors' embedding (T, L D), of one utterance (S,)."""
    weights = {key: value.double() for key, value in state.items()}
    features = spectrum(waveform).double()
    pieces = [window_states(weights, features[:, i : i + window]) for i in range(0, features.size(1), window)]
    states = [torch.cat(parts) for parts in zip(*pieces, strict=True)]
    norm = "norm" if "cls_token" in weights else "norm_frame"
    embedding = torch.cat([layer_norm(x, weights, norm) for x in states[1:]], dim=1)
    return [x.float() for x in states], embedding.float()


def window_states(weights: dict[str, Tensor], features: Tensor) -> list[Tensor]:
    """(64, T of a window) -> the input of the first block and the outputs of all, without the token of the clip."""
    clip = "cls_token" in weights
    return [x[1:] if clip else x for x in all_tokens(weights, features)]


def scene(state: dict[str, Tensor], waveform: Tensor, *, window: int) -> Tensor:
    """The authors' embedding of one clip (S,)."""
    weights = {key: value.double() for key, value in state.items()}
    clip = "cls_token" in weights
    features = spectrum(waveform).double()
    tokens, means = [], []
    for start in range(0, features.size(1), window):
        if (clip and start > 0 and features.size(1) - start <= window // 2) or features.size(1) - start < 4:
            continue
        states = all_tokens(weights, features[:, start : start + window])
        normed = [layer_norm(x, weights, "norm" if clip else "norm_frame") for x in states[1:]]
        tokens.append(torch.cat([x[0] for x in normed]))
        means.append(torch.cat([x[int(clip) :].mean(dim=0) for x in normed]))
    mean = torch.stack(means).mean(dim=0)
    return (torch.cat([torch.stack(tokens).mean(dim=0), mean]) if clip else mean).float()


def all_tokens(weights: dict[str, Tensor], features: Tensor) -> list[Tensor]:
    """(64, T of a window) -> the input of the first block and the outputs of all."""
    count = features.size(1) // 4
    at = "patch_embed.patch_embed."
    tokens = [
        weights[at + "weight"] @ features[:, 4 * k : 4 * k + 4].reshape(-1)
        + weights[at + "bias"] + weights["pos_embed"][0, k + 1]
        for k in range(count)
    ]  # fmt: skip
    if "cls_token" in weights:
        tokens.insert(0, weights["cls_token"][0, 0] + weights["pos_embed"][0, 0])
    x = torch.stack(tokens) if tokens else torch.zeros(0, WIDTH, dtype=torch.float64)
    states = [x]
    for block in range(DEPTH):
        at = f"blocks.{block}."
        qkv = layer_norm(x, weights, at + "norm1") @ weights[at + "attn.qkv.weight"].T
        heads = []
        for head in range(HEADS):
            q, k, v = (
                qkv[:, part * WIDTH + head * 64 : part * WIDTH + (head + 1) * 64] for part in range(3)
            )  # each (T, 64)
            heads.append(torch.softmax(q @ k.T / 8.0, dim=1) @ v)
        x = x + torch.cat(heads, dim=1) @ weights[at + "attn.proj.weight"].T + weights[at + "attn.proj.bias"]
        inner = layer_norm(x, weights, at + "norm2") @ weights[at + "mlp.fc1.weight"].T + weights[at + "mlp.fc1.bias"]
        inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
        x = x + inner @ weights[at + "mlp.fc2.weight"].T + weights[at + "mlp.fc2.bias"]
        states.append(x)
    return states


def layer_norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(dim=1, keepdim=True)
    scaled = centred / torch.sqrt(centred.square().mean(dim=1, keepdim=True) + 1e-6)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def lightning(state: dict[str, Tensor], **settings: Any) -> dict[str, Any]:
    """As Lightning saves it: teacher, student (whose weights are others) and projectors."""
    weights = {f"model.teacher.encoder.{k}": v for k, v in state.items()}
    weights |= {f"model.student.encoder.{k}": v + 1 for k, v in state.items()}
    weights["model.teacher.projector.0.weight"] = torch.zeros(3, 3)
    return {
        "epoch": 1, "pytorch-lightning_version": "1.5.0", "state_dict": weights, "callbacks": {"ModelCheckpoint": {}},
        "hyper_parameters": {"arch": "base", "pos_type": "cut", "n_mels": 64, "patch_h": 64, **settings},
    }  # fmt: skip


def lightning_with_convolution(state: dict[str, Tensor], **settings: Any) -> dict[str, Any]:
    """With the patch embedding as a convolution."""
    changed = {k.replace("patch_embed.patch_embed", "patch_embed.proj"): v for k, v in state.items()}
    changed["patch_embed.proj.weight"] = changed["patch_embed.proj.weight"].view(WIDTH, 1, 64, 4)
    return lightning(changed, **settings)


def teacher_beside_args(state: dict[str, Tensor], **settings: Any) -> dict[str, Any]:
    weights = {f"module.backbone.{k}": v for k, v in state.items()}
    return {"teacher": weights, "args": argparse.Namespace(arch="ast", **settings)}


def encoder_alone(state: dict[str, Tensor], **_: Any) -> dict[str, Any]:
    return dict(state)


@pytest.fixture(scope="module")
def waveform() -> Tensor:
    """With a level that rises by 60 dB, so that the cut below the loudest shows."""
    generator = torch.Generator().manual_seed(0)
    rise = 10 ** torch.linspace(-4.5, -0.5, 24_100)
    return torch.tensor([[1.0], [0.1]]) * rise * torch.randn(2, 24_100, generator=generator)


@pytest.mark.parity("{form}", "slow reference in float64")
@pytest.mark.parametrize("form", [lightning, lightning_with_convolution, teacher_beside_args, encoder_alone])
@pytest.mark.parametrize("kind", ["frame", "clip"])
def test_hidden_states_equal_the_plain_implementation(
    kind: str, form: Callable[..., Any], waveform: Tensor, tmp_path: Path
) -> None:
    state = random_state(kind)
    torch.save(form(state), tmp_path / "atst.ckpt")
    upstream = load_upstream(tmp_path / "atst.ckpt")
    assert isinstance(upstream, AtstUpstream)
    assert (upstream.family, upstream.frame_rate) == ("atst", 25.0)
    expected, embedding = reference(state, waveform[0])  # 151 frames: three windows and a part
    with torch.no_grad():
        out = upstream(waveform[:1])
    assert out.lengths.tolist() == [len(expected[0])] == [37]
    for ours, theirs in zip(out.hidden_states[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(ours[0], theirs, rtol=0, atol=1e-4)
    torch.testing.assert_close(out.hidden_states[-1][0], embedding[:, -WIDTH:], rtol=0, atol=1e-4)
    torch.testing.assert_close(upstream.timestamp_embeddings(waveform[:1])[0], embedding, rtol=0, atol=1e-4)


@pytest.mark.parity("lightning", "slow reference in float64")
@pytest.mark.parametrize("samples", [6_559, 6_560, 6_719, 6_720, 6_880, 7_200, 13_119])
def test_padded_utterances_equal_the_plain_implementation_one_by_one(
    samples: int, waveform: Tensor, tmp_path: Path
) -> None:
    state = random_state("frame")
    torch.save(lightning(state), tmp_path / "atst.ckpt")
    upstream = load_upstream(tmp_path / "atst.ckpt")
    assert isinstance(upstream, AtstUpstream)
    expected, embedding = reference(state, waveform[1, :samples])
    lengths = torch.tensor([24_100, samples])
    out = upstream(waveform, lengths)  # with gradients, so that the batch is computed as one
    frames = int(out.lengths[1])
    assert frames == len(embedding)
    torch.testing.assert_close(out.hidden_states[1][1, :frames].detach(), expected[1], rtol=0, atol=1e-4)
    found = upstream.timestamp_embeddings(waveform, lengths)
    torch.testing.assert_close(found[1, :frames], embedding, rtol=0, atol=1e-4)
    assert (found[1, frames:] == 0).all()


@pytest.mark.parametrize("form", ["lightning", "teacher beside args"])
def test_clips_are_read_in_windows_of_the_length_of_training(form: str, waveform: Tensor, tmp_path: Path) -> None:
    state = random_state("clip")
    content = (
        lightning(state, train_len=0.27) if form == "lightning" else teacher_beside_args(state, anchor_len=(0.27, 0.27))
    )
    torch.save(content, tmp_path / "atst.ckpt")
    upstream = load_upstream(tmp_path / "atst.ckpt")
    assert isinstance(upstream.config, AtstConfig)
    assert (upstream.config.window_frames, upstream.config.columns) == (28, 7)
    expected, _ = reference(state, waveform[0], window=28)
    with torch.no_grad():
        ours = upstream(waveform[:1]).hidden_states[1][0]
    torch.testing.assert_close(ours, expected[1], rtol=0, atol=1e-4)


@pytest.mark.parity("lightning", "slow reference in float64")
@pytest.mark.parametrize("kind", ["frame", "clip"])
def test_scenes_equal_the_plain_implementation_one_by_one(kind: str, waveform: Tensor, tmp_path: Path) -> None:
    state = random_state(kind)
    torch.save(lightning(state), tmp_path / "atst.ckpt")
    upstream = load_upstream(tmp_path / "atst.ckpt")
    assert isinstance(upstream, AtstUpstream)
    for samples in (24_100, 22_000, 16_500, 9_600, 6_560, 3_000):
        lengths = torch.tensor([24_100, samples])
        for row, found in enumerate(upstream.scene_embeddings(waveform, lengths)):
            expected = scene(state, waveform[row, : lengths[row]], window=WINDOW)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_classes_of_lightning_are_read_without_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("pytorch_lightning.callbacks")
    callback = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks"})
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]  # made up here
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, "pytorch_lightning.callbacks", module)
    torch.save({**lightning(random_state("frame")), "callbacks": {callback: {"best": 1.0}}}, tmp_path / "atst.ckpt")
    monkeypatch.undo()
    assert load_upstream(tmp_path / "atst.ckpt").family == "atst"


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("atst_frame_small", 21_475_200),
        ("atst_frame_base", 85_417_728),
        ("atst_clip_small", 21_437_568),
        ("atst_clip_base", 85_342_464),
    ],
)
def test_presets_have_the_published_shapes(name: str, count: int) -> None:
    config = PRESETS[name]
    with torch.device("meta"):
        upstream = build(config)
    width = config.width
    block = 4 * width + 3 * width**2 + width**2 + width + 8 * width**2 + 5 * width  # norms, attention, feed-forward
    rest = 256 * width + width + config.columns * width + 2 * config.prefix_tokens * width + 2 * width
    assert sum(p.numel() for p in upstream.parameters()) == 12 * block + rest == count
    assert upstream.frame_rate == 25.0


def test_what_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    path, state = tmp_path / "atst.ckpt", random_state("frame")
    for settings, says in (({"pos_type": "interpolate"}, "pos_type"), ({"n_mels": 128}, "n_mels")):
        torch.save(lightning(state, **settings), path)
        with pytest.raises(ConfigError, match=says):
            load_upstream(path)
    torch.save({f"{p}.{k}": v for p in ("one", "two") for k, v in state.items()}, path)
    with pytest.raises(SpeechsslError, match=r"several ATST encoders \(one\., two\.\)"):
        load_upstream(path)
    torch.save(encoder_alone({k: v for k, v in state.items() if k != "blocks.1.norm2.bias"}), path)
    with pytest.raises(SpeechsslError, match=r"lack 'blocks\.1\.norm2\.bias'"):
        load_upstream(path)
    torch.save(encoder_alone({**state, "patch_embed.patch_embed.weight": torch.zeros(WIDTH, 100)}), path)
    with pytest.raises(ConfigError, match="64 mel bands high"):
        load_upstream(path)
    with pytest.raises(ConfigError, match="window_frames"):
        build(AtstConfig(window_frames=900))
