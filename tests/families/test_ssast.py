"""SSAST against transformers' audio spectrogram transformer (AST), whose architecture it has."""

import dataclasses
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, ASTModel

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.export import export_upstream
from speechssl.loading import load_upstream
from speechssl.long_audio import extract_long
from speechssl.types import Utterance
from upstreams.ssast.config import PRESETS
from upstreams.ssast.model import build

WIDTH, BLOCKS = 128, 3
TIMM = {
    "attention.output.dense": "attn.proj", "layernorm_before": "norm1", "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
}  # fmt: skip


def ast(*, frames: int, patch: tuple[int, int] = (16, 16), stride: int = 16, kind: type = ASTModel) -> ASTModel:
    """Random weights of transformers' AST; `patch` is mel bands and frames, which it has no setting for."""
    config = ASTConfig(
        hidden_size=WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=2, intermediate_size=96, patch_size=16,
        frequency_stride=stride, time_stride=stride, max_length=frames, num_mel_bins=48, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, num_labels=5,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config)
        embeddings = getattr(model, "audio_spectrogram_transformer", model).embeddings
        if patch != (16, 16):
            embeddings.patch_embeddings.projection = torch.nn.Conv2d(1, WIDTH, patch, patch)
            positions = torch.empty(1, 2 + (48 // patch[0]) * (frames // patch[1]), WIDTH)
            embeddings.position_embeddings = torch.nn.Parameter(positions)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2 if parameter.dim() == 1 else 0.05)
    return model.eval()


def cut_positions(model: ASTModel, *, frames: int, rows: int, step: int) -> ASTModel:
    """The authors' way to shorter audio: of each row of positions, the columns in the middle."""
    table = model.embeddings.position_embeddings.data
    grid = table[:, 2:].reshape(1, rows, -1, WIDTH)
    had, needed = grid.size(2), frames // step
    start = had // 2 - needed // 2
    grid = grid[:, :, start : start + needed]
    model.embeddings.position_embeddings = torch.nn.Parameter(
        torch.cat((table[:, :2], grid.reshape(1, -1, WIDTH)), dim=1)
    )
    return model


def authors_state(model: ASTModel) -> dict[str, Tensor]:
    """The names that the authors' code, on timm and DataParallel, gives these weights."""
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)  # transformers 5 gives other names to weights in memory than to those in files
        theirs = load_file(f"{folder}/model.safetensors")
    state = {}
    for key, value in theirs.items():
        if match := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", key):
            index, part, kind = match.groups()
            if part == "attention.attention.query":
                parts = [theirs[key.replace("query", p)] for p in ("query", "key", "value")]
                state[f"v.blocks.{index}.attn.qkv.{kind}"] = torch.cat(parts)
            elif part in TIMM:
                state[f"v.blocks.{index}.{TIMM[part]}.{kind}"] = value
    for kind in ("weight", "bias"):
        state[f"v.norm.{kind}"] = theirs[f"layernorm.{kind}"]
        state[f"v.patch_embed.proj.{kind}"] = theirs[f"embeddings.patch_embeddings.projection.{kind}"]
        state[f"v.head_dist.{kind}"] = torch.zeros(7)
    state["v.cls_token"] = theirs["embeddings.cls_token"]
    state["v.dist_token"] = theirs["embeddings.distillation_token"]
    state["v.pos_embed"] = theirs["embeddings.position_embeddings"]
    state |= {
        "p_input_fdim": torch.tensor(48),
        "p_input_tdim": torch.tensor(64),
        "mask_embed": torch.zeros(1, 1, WIDTH),
    }
    state |= {"cpredlayer.0.weight": torch.zeros(WIDTH, WIDTH), "gpredlayer.2.bias": torch.zeros(256)}
    return {f"module.{key}": value for key, value in state.items()}


def noise(frames: int, *, extra: int = 0) -> Tensor:
    """Samples of exactly so many frames of 25 ms, (1, S), of a level that changes."""
    samples = 400 + 160 * (frames - 1) + extra
    waveform = torch.randn(1, samples, generator=torch.Generator().manual_seed(1))
    return waveform * torch.linspace(0.02, 0.4, samples)


def reference(model: ASTModel, waveform: Tensor, *, frames: int, rows: int) -> list[Tensor]:
    """transformers' hidden states, the last one after the closing norm, as (1, columns, rows x width)."""
    extractor = ASTFeatureExtractor(num_mel_bins=48, max_length=frames)
    values = extractor(waveform[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        out = model(values, output_hidden_states=True)
    states = []
    for state in (*out.hidden_states[:-1], out.last_hidden_state):
        patches = state[0, 2:].reshape(rows, -1, WIDTH)
        states.append(torch.stack([patches[:, t].reshape(-1) for t in range(patches.size(1))])[None])
    return states


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs) == BLOCKS + 1
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parity("authors' checkpoint", "transformers")
@pytest.mark.parametrize(("patch", "rows", "step"), [((16, 16), 3, 16), ((48, 2), 1, 2)], ids=["patch", "frame"])
@pytest.mark.parametrize("frames", [64, 32, 48])
def test_checkpoints_of_the_authors_give_the_numbers_of_transformers(
    patch: tuple[int, int], rows: int, step: int, frames: int, tmp_path: Path
) -> None:
    model = ast(frames=64, patch=patch)
    torch.save(authors_state(model), tmp_path / "audio_model.pth")
    upstream = load_upstream(tmp_path / "audio_model.pth")
    assert (upstream.family, upstream.frame_rate) == ("ssast", 100 / step)
    waveform = noise(frames)
    model = cut_positions(model, frames=frames, rows=rows, step=step)
    with torch.no_grad():
        ours = upstream(waveform)
    assert ours.lengths.tolist() == [frames // step]
    assert_close(list(ours.hidden_states), reference(model, waveform, frames=frames, rows=rows))


@pytest.mark.parity("transformers", "transformers")
@pytest.mark.parametrize("stride", [10, 16])
def test_folders_of_transformers_load_and_go_back_bit_for_bit(stride: int, tmp_path: Path) -> None:
    model = ast(frames=66, stride=stride, kind=ASTForAudioClassification)
    model.save_pretrained(tmp_path / "theirs")
    ASTFeatureExtractor(num_mel_bins=48, max_length=66).save_pretrained(tmp_path / "theirs")
    upstream = load_upstream(tmp_path / "theirs")
    inner, rows = model.audio_spectrogram_transformer, (48 - 16) // stride + 1
    waveform = noise(66)
    with torch.no_grad():
        ours = upstream(waveform).hidden_states
    assert_close(list(ours), reference(inner, waveform, frames=66, rows=rows))
    export_upstream(tmp_path / "theirs", tmp_path / "back", to="transformers")
    again = ASTModel.from_pretrained(tmp_path / "back")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in inner.state_dict().items())
    extractor = ASTFeatureExtractor.from_pretrained(tmp_path / "back")
    assert (extractor.mean, extractor.std, extractor.num_mel_bins) == (-4.2677393, 4.5689974, 48)


def test_longer_audio_is_read_in_windows(tmp_path: Path) -> None:
    torch.save(authors_state(ast(frames=64)), tmp_path / "model.pth")
    upstream = load_upstream(tmp_path / "model.pth")
    waveform = noise(64 + 64 + 37)
    lengths = torch.tensor([waveform.size(1), 400 + 160 * 70, 400 + 160 * 63, 400 + 160 * 20])
    batch = waveform.expand(4, -1)
    with torch.no_grad():
        whole = upstream(batch, lengths)
        assert whole.lengths.tolist() == [10, 4, 4, 1]
        for row, length in enumerate(lengths.tolist()):
            alone = upstream(waveform[:, :length])
            starts = range(0, 640 * 16 * int(alone.lengths) // 4, 10_240)
            parts = [upstream(waveform[:, at : min(at + 400 + 160 * 63, length)]).hidden_states[-1] for at in starts]
            for k in range(BLOCKS + 1):
                torch.testing.assert_close(
                    whole.hidden_states[k][row, : alone.lengths[0]], alone.hidden_states[k][0], rtol=0, atol=1e-5
                )
            torch.testing.assert_close(alone.hidden_states[-1], torch.cat(parts, dim=1), rtol=0, atol=1e-5)


def test_a_long_file_in_chunks_of_whole_windows_is_exact(tmp_path: Path) -> None:
    torch.save(authors_state(ast(frames=64)), tmp_path / "model.pth")
    upstream = load_upstream(tmp_path / "model.pth")
    waveform = noise(64 * 5 + 37)
    soundfile.write(tmp_path / "long.wav", waveform[0].numpy(), 16_000, subtype="FLOAT")
    pieces = extract_long(upstream, Utterance("long", str(tmp_path / "long.wav")), chunk=1.28, context=0.0)
    with torch.no_grad():
        whole = upstream(waveform).hidden_states
    joined = [torch.cat(states) for states in zip(*pieces, strict=True)]
    for a, b in zip(joined, whole, strict=True):
        torch.testing.assert_close(a, b[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ssast_patch_base", "ssast_frame_base", "ssast_patch_small", "ssast_frame_tiny"])
def test_presets_have_the_shapes_of_transformers_model(name: str) -> None:
    config = PRESETS[name]
    with torch.device("meta"):
        ours = sum(p.numel() for p in build(config).parameters())
        their_config = ASTConfig(
            hidden_size=config.width, num_hidden_layers=12, num_attention_heads=config.heads,
            intermediate_size=config.ffn_width, frequency_stride=16, time_stride=16, max_length=1024,
        )  # fmt: skip
        theirs = sum(p.numel() for p in ASTModel(their_config).parameters())
    assert ours == theirs  # a strip of 128 x 2 has as many inputs as a patch of 16 x 16, and there are as many of them


def test_the_mean_over_frequencies_is_the_mean_of_the_joined_patches() -> None:
    config = dataclasses.replace(PRESETS["ssast_patch_tiny"], depth=1)
    joined = build(config).eval()
    mean = build(dataclasses.replace(config, frequency="mean")).eval()
    mean.load_state_dict(joined.state_dict())
    assert (joined.hidden_sizes, mean.hidden_sizes) == ((1536, 1536), (192, 192))
    with torch.no_grad():
        a, b = joined(noise(40)).hidden_states[1], mean(noise(40)).hidden_states[1]
    torch.testing.assert_close(a.view(1, 2, 8, 192).mean(dim=2), b)


@pytest.mark.parametrize("missing", ["v.pos_embed", "v.patch_embed.proj.weight", "v.blocks.0.mlp.fc1.weight"])
def test_an_incomplete_checkpoint_is_one_sentence(missing: str, tmp_path: Path) -> None:
    state = authors_state(ast(frames=64))
    del state[f"module.{missing}"]
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(SpeechsslError, match=r"bad\.pth lacks"):
        load_upstream(tmp_path / "bad.pth")


def test_weights_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    state = authors_state(ast(frames=64))
    state["module.v.pos_embed"] = torch.zeros(1, 2 + 13, WIDTH)
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(SpeechsslError, match="13 positions"):
        load_upstream(tmp_path / "bad.pth")
    model = ast(frames=64)
    model.config.hidden_act = "relu"
    model.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ConfigError, match="hidden_act"):
        load_upstream(tmp_path / "theirs")


def test_strips_can_not_be_written_for_transformers(tmp_path: Path) -> None:
    torch.save(authors_state(ast(frames=64, patch=(48, 2))), tmp_path / "model.pth")
    with pytest.raises(ConfigError, match="square"):
        export_upstream(tmp_path / "model.pth", tmp_path / "out", to="transformers")
