"""TERA, Mockingjay and Audio ALBERT against a slow transformer with S3PRL's names on torchaudio's features."""

import argparse
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torchaudio
from torch import Tensor, nn

import speechssl.upstream
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.frontend.normalized_mel import NormalizedCentredMel
from speechssl.loading import load_upstream
from upstreams.tera.config import PRESETS
from upstreams.tera.model import build
from upstreams.tera.windows import cut_evenly

WIDTH, HEADS, FFN, DEPTH, MOST = 24, 4, 40, 3, 50
"""MOST frames of a part."""
ONLINE = {
    "target_level": -25, "win_ms": 25, "hop_ms": 10, "n_freq": 201, "n_mels": 80, "n_mfcc": 13,
    "input": {"feat_type": "mel", "channel": 0, "log": True, "delta": 0, "cmvn": True},
}  # fmt: skip
KALDI = {
    "kaldi": {
        "feat_type": "fbank",
        "fbank": {"frame_length": 25.0, "frame_shift": 10.0, "num_mel_bins": 80, "use_log_fbank": True},
    },
    "delta": {"order": 2, "win_length": 5},
    "cmvn": {"use_cmvn": True},
}


def random_state(inputs: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Weights by S3PRL's names, large enough for attention to prefer some frames."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def linear(name: str, ins: int, outs: int) -> None:
        state[f"{name}.weight"] = torch.randn(outs, ins, generator=generator) * 1.5 * ins**-0.5
        state[f"{name}.bias"] = 0.2 * torch.randn(outs, generator=generator)

    def norm(name: str) -> None:
        state[f"{name}.weight"] = 1 + 0.2 * torch.randn(WIDTH, generator=generator)
        state[f"{name}.bias"] = 0.2 * torch.randn(WIDTH, generator=generator)

    linear("input_representations.spec_transform", inputs, WIDTH)
    norm("input_representations.LayerNorm")
    for index in range(DEPTH):
        block = f"encoder.layer.{index}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{block}.attention.{name}", WIDTH, WIDTH)
        norm(f"{block}.attention.output.LayerNorm")
        linear(f"{block}.intermediate.dense", WIDTH, FFN)
        linear(f"{block}.output.dense", FFN, WIDTH)
        norm(f"{block}.output.LayerNorm")
    return state


def plain_states(state: dict[str, Tensor], frames: Tensor) -> list[Tensor]:
    """Hidden states of one part, (T, C) -> L + 1 of (T, D): each frame attends by hand."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-12).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    positions = torch.tensor(
        [
            [(math.cos if d % 2 else math.sin)(t / 10_000 ** (2 * (d // 2) / WIDTH)) for d in range(WIDTH)]
            for t in range(len(frames))
        ]
    )
    x = norm("input_representations.LayerNorm", linear("input_representations.spec_transform", frames) + positions)
    states = [x]
    for index in range(DEPTH):
        block, size = f"encoder.layer.{index}", WIDTH // HEADS
        query, key, value = (linear(f"{block}.attention.self.{n}", x) for n in ("query", "key", "value"))
        heads = []
        for h in range(HEADS):
            part = slice(h * size, (h + 1) * size)
            heads.append((query[:, part] @ key[:, part].T / math.sqrt(size)).softmax(dim=1) @ value[:, part])
        attended = linear(f"{block}.attention.output.dense", torch.cat(heads, dim=1))
        x = norm(f"{block}.attention.output.LayerNorm", attended + x)
        inner = linear(f"{block}.intermediate.dense", x)
        inner = inner * 0.5 * (1.0 + torch.erf(inner / math.sqrt(2.0)))
        x = norm(f"{block}.output.LayerNorm", linear(f"{block}.output.dense", inner) + x)
        states.append(x)
    return states


def plain_features(waveform: Tensor, *, kaldi: bool) -> Tensor:
    """(S,) -> (T, C) by torchaudio."""
    if kaldi:
        fbank = torchaudio.compliance.kaldi.fbank(waveform[None], num_mel_bins=80).T  # (80, T)
        first = torchaudio.functional.compute_deltas(fbank[None])
        features = torch.cat((fbank[None], first, torchaudio.functional.compute_deltas(first)), dim=1)[0].T
    else:
        level = waveform * 10 ** (-25 / 20) / waveform.square().mean().sqrt()
        mel = torchaudio.transforms.MelSpectrogram(16_000, n_fft=400, hop_length=160, n_mels=80)
        features = (mel(level) + 1e-10).log().T
    deviation = features.std(dim=0)
    return torch.where(deviation > 1e-4, (features - features.mean(dim=0)) / deviation, 0.0)


def plain(state: dict[str, Tensor], waveform: Tensor, *, kaldi: bool) -> list[Tensor]:
    """Hidden states of one utterance, read in as few equal parts of at most MOST frames as it takes."""
    features = plain_features(waveform, kaldi=kaldi)
    parts = [plain_states(state, part) for part in features.chunk(math.ceil(len(features) / MOST))]
    return [torch.cat(states) for states in zip(*parts, strict=True)]


def s3prl(state: dict[str, Tensor], *, kaldi: bool = False, share: bool = False, **changes: Any) -> dict[str, Any]:
    """What S3PRL's runner saves."""
    transformer = {
        "input_dim": -1, "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS,
        "hidden_act": "gelu", "intermediate_size": FFN, "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "share_layer": share,
        "pre_layer_norm": False, **changes,
    }  # fmt: skip
    settings = {"transformer": transformer, "task": {"sequence_length": MOST}, "audio": KALDI if kaldi else ONLINE}
    return {
        "Optimizer": {"state": {}, "param_groups": [{"lr": 2e-4}]}, "Step": 1_000_000,
        "Args": argparse.Namespace(upstream="tera"), "Config": {"runner": {"n_epochs": -1}},
        "Upstream_Config": settings, "Transformer": state, "SpecHead": {"dense.weight": torch.zeros(WIDTH, WIDTH)},
    }  # fmt: skip


@pytest.fixture(scope="module")
def waveforms() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (23_037, 9_000, 7_900, 1_000)
    return [0.1 * torch.randn(n, generator=generator) * torch.linspace(0.1, 1.0, n) for n in sizes]


@pytest.mark.parity("S3PRL's .ckpt ({frontend}, {blocks})", "a slow reference")
@pytest.mark.parametrize("blocks", ["own blocks", "one block"])
@pytest.mark.parametrize("frontend", ["log-mel", "fbank"])
def test_s3prls_checkpoint_gives_the_hidden_states_of_the_papers_formulas(
    frontend: str, blocks: str, waveforms: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speechssl.upstream, "GROUP_SECONDS", 1_000.0)  # one batch, whatever the padding costs
    kaldi, share = frontend == "fbank", blocks == "one block"
    state = random_state(240 if kaldi else 80)
    if share:
        for key in state:
            if key.startswith("encoder.layer."):
                state[key] = state[key.replace(key.split(".")[2], "0", 1)]
    torch.save(s3prl(state, kaldi=kaldi, share=share), tmp_path / "states-1000000.ckpt")
    upstream = load_upstream(tmp_path / "states-1000000.ckpt")
    assert (upstream.family, upstream.frame_rate, len(upstream.hidden_sizes)) == ("tera", 100.0, DEPTH + 1)
    batch = nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    with torch.no_grad():
        out = upstream(batch, torch.tensor([len(w) for w in waveforms]))
    for row, waveform in enumerate(waveforms):
        for ours, theirs in zip(out.hidden_states, plain(state, waveform, kaldi=kaldi), strict=True):
            assert int(out.lengths[row]) == len(theirs)
            torch.testing.assert_close(ours[row, : len(theirs)], theirs, rtol=0, atol=1e-4)


def test_the_spectrum_is_torchaudios_normalised_over_the_utterance(waveforms: list[Tensor]) -> None:
    level = waveforms[0] * 10 ** (-25 / 20) / waveforms[0].square().mean().sqrt()
    log = (torchaudio.transforms.Spectrogram(n_fft=400, hop_length=160)(level) + 1e-10).log().T
    expected = (log - log.mean(dim=0)) / log.std(dim=0)
    frontend = NormalizedCentredMel(80, level=-25.0)
    found = frontend.spectrum(waveforms[0][None], torch.tensor([len(waveforms[0])]))[0]
    assert found.shape == (len(waveforms[0]) // 160 + 1, frontend.spectrum_width)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # the logarithm of almost nothing is steep


def test_parts_are_those_of_torch_chunk_and_join_to_what_was_cut() -> None:
    lengths = torch.tensor([23, 10, 11, 1, 20])
    x = torch.randn(5, 23, 2, generator=torch.Generator().manual_seed(0))
    parts = cut_evenly(x, lengths, 10)
    expected = [chunk for row, n in zip(x, lengths.tolist(), strict=True) for chunk in row[:n].chunk(math.ceil(n / 10))]
    assert parts.lengths.tolist() == [len(chunk) for chunk in expected]
    for part, chunk in zip(parts.x, expected, strict=True):
        assert torch.equal(part[: len(chunk)], chunk)
    inside = torch.arange(23) < lengths[:, None]
    assert torch.equal(parts.join(parts.x), x * inside[:, :, None])


def test_weights_that_s3prl_keeps_under_tensorflows_names_load_too(waveforms: list[Tensor], tmp_path: Path) -> None:
    state = random_state(80)
    old = {k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v for k, v in state.items()}
    for name, weights in (("new", state), ("old", old)):
        torch.save(s3prl(weights), tmp_path / f"{name}.ckpt")
    new, other = (load_upstream(tmp_path / f"{name}.ckpt") for name in ("new", "old"))
    assert new.fingerprint() == other.fingerprint()


def test_a_checkpoint_with_the_optimisers_schedule_inside_is_read_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("optimizers")

    class WarmupLinearSchedule:
        def __init__(self) -> None:
            self.warmup = 0.07

    WarmupLinearSchedule.__module__, WarmupLinearSchedule.__qualname__ = "optimizers", "WarmupLinearSchedule"
    module.WarmupLinearSchedule = WarmupLinearSchedule  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "optimizers", module)
    content = s3prl(random_state(80))
    content["Optimizer"] = {"param_groups": [{"schedule": WarmupLinearSchedule()}]}
    torch.save(content, tmp_path / "states.ckpt")
    monkeypatch.delitem(sys.modules, "optimizers")
    assert load_upstream(tmp_path / "states.ckpt").family == "tera"


@pytest.mark.parametrize("change", [{"pre_layer_norm": True}, {"hidden_act": "relu"}])
def test_parts_that_the_published_models_have_not_are_named(change: dict[str, Any], tmp_path: Path) -> None:
    torch.save(s3prl(random_state(80), **change), tmp_path / "states.ckpt")
    with pytest.raises(ConfigError, match=next(iter(change))):
        load_upstream(tmp_path / "states.ckpt")


def test_other_features_are_named(tmp_path: Path) -> None:
    content = s3prl(random_state(80))
    content["Upstream_Config"]["audio"] = {**ONLINE, "input": {**ONLINE["input"], "feat_type": "mfcc"}}  # type: ignore[dict-item]
    torch.save(content, tmp_path / "states.ckpt")
    with pytest.raises(ConfigError, match="feat_type"):
        load_upstream(tmp_path / "states.ckpt")


@pytest.mark.parametrize(
    "missing", ["encoder.layer.1.attention.self.query.weight", "encoder.layer.2.output.dense.bias"]
)
def test_a_missing_weight_is_named_as_the_file_would_have_it(missing: str, tmp_path: Path) -> None:
    state = random_state(80)
    del state[missing]
    torch.save(s3prl(state), tmp_path / "states.ckpt")
    with pytest.raises(SpeechsslError, match=missing.replace(".", r"\.")):
        load_upstream(tmp_path / "states.ckpt")


def test_presets_have_the_published_sizes() -> None:
    block = 7_087_872
    counts = {"tera_base": 21_327_360, "tera_medium": 21_327_360 + 3 * block, "tera_tiny": 2_390_528}
    for name, count in counts.items():
        assert sum(p.numel() for p in build(PRESETS[name]).parameters()) == count, name
    shared = sum(p.numel() for p in build(PRESETS["tera_audio_albert"]).parameters())
    assert shared == 80 * 768 + 3 * 768 + block  # projection, its bias and norm, one block


def test_training_on_one_block_moves_it_once_for_all_layers() -> None:
    upstream = build(PRESETS["tera_audio_albert"])
    assert sum("encoder.shared" in name for name, _ in upstream.named_parameters()) == 12
    assert not any("encoder.blocks" in name for name in upstream.state_dict())
