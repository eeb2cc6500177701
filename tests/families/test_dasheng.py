"""Dasheng against a plain reference, written from the authors' code, on torchaudio's mel spectrogram."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchaudio.transforms as AT
from plain_vit import block_weights, hidden_states, norm_weights, normal
from safetensors.torch import save_file
from torch import Tensor

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.loading import load_upstream
from upstreams.dasheng.config import PRESETS
from upstreams.dasheng.convert import FORMATS
from upstreams.dasheng.model import build

WIDTH, HEADS, BLOCKS, COLUMNS = 48, 3, 2, 10
SETTINGS = {
    "embed_dim": WIDTH, "depth": BLOCKS, "num_heads": HEADS, "patch_size": [64, 4], "patch_stride": [64, 4],
    "target_length": 4 * COLUMNS, "mlp_ratio": 2.0,
}  # fmt: skip


def authors_state() -> dict[str, Tensor]:
    """Random weights by the authors' names (dasheng/train/models.py)."""
    generator = torch.Generator().manual_seed(0)
    return {
        "init_bn.1.weight": 1 + normal(generator, 64, std=0.2),
        "init_bn.1.bias": normal(generator, 64, std=0.2),
        "init_bn.1.running_mean": -20 + normal(generator, 64, std=5.0),
        "init_bn.1.running_var": 300 + normal(generator, 64, std=50.0),
        "init_bn.1.num_batches_tracked": torch.tensor(7),
        "patch_embed.proj.weight": normal(generator, WIDTH, 1, 64, 4),
        "patch_embed.proj.bias": normal(generator, WIDTH, std=0.2),
        "time_pos_embed": normal(generator, 1, WIDTH, 1, COLUMNS, std=0.3),
        "freq_pos_embed": normal(generator, 1, WIDTH, 1, 1, std=0.3),
        "front_end.0.spectrogram.window": torch.hann_window(512),
        "front_end.0.mel_scale.fb": torch.zeros(257, 64),
        **block_weights(generator, width=WIDTH, ffn_width=2 * WIDTH, depth=BLOCKS),
        **norm_weights(generator, "norm", WIDTH),
    }


def reference(state: dict[str, Tensor], waveform: Tensor) -> list[Tensor]:
    """Hidden states (frames, width) of one utterance, in chunks of the trained length."""
    mel = AT.MelSpectrogram(
        f_min=0, sample_rate=16_000, win_length=512, center=True, n_fft=512, f_max=8_000, hop_length=160, n_mels=64
    )
    spectrum = AT.AmplitudeToDB(top_db=120)(mel(waveform))[0]  # (64, frames)
    mean, variance = state["init_bn.1.running_mean"], state["init_bn.1.running_var"]
    spectrum = (spectrum - mean[:, None]) / torch.sqrt(variance[:, None] + 1e-5)
    spectrum = spectrum * state["init_bn.1.weight"][:, None] + state["init_bn.1.bias"][:, None]
    length = 4 * COLUMNS
    columns, chunks = spectrum.size(1) // 4, list(spectrum.split(length, dim=1))
    parts = [_chunk(state, chunk) for chunk in chunks if chunk.size(1) >= 4]
    return [torch.cat(states)[:columns] for states in zip(*parts, strict=True)]


def _chunk(state: dict[str, Tensor], spectrum: Tensor) -> list[Tensor]:
    tokens = []
    for t in range(spectrum.size(1) // 4):
        strip = spectrum[:, 4 * t : 4 * t + 4].reshape(-1)
        embedded = state["patch_embed.proj.weight"].flatten(1) @ strip + state["patch_embed.proj.bias"]
        tokens.append(embedded + state["time_pos_embed"][0, :, 0, t] + state["freq_pos_embed"][0, :, 0, 0])
    return hidden_states(torch.stack(tokens), state, depth=BLOCKS, heads=HEADS)


def noise(samples: int) -> Tensor:
    waveform = torch.randn(1, samples, generator=torch.Generator().manual_seed(1))
    return waveform * torch.linspace(1e-4, 0.4, samples)


def save_pt(state: dict[str, Tensor], folder: Path, config: dict[str, Any] | None = None) -> Path:
    torch.save({"model": state, "config": SETTINGS if config is None else config}, folder / "dasheng.pt")
    return folder / "dasheng.pt"


def save_autoencoder(state: dict[str, Tensor], folder: Path) -> Path:
    whole = {f"encoder.{key}": value for key, value in state.items()} | {"decoder.mask_token": torch.zeros(1, 1, 8)}
    return save_pt(whole, folder)


def save_hub(state: dict[str, Tensor], folder: Path, **changes: Any) -> Path:
    weights = {f"encoder.{k}": v for k, v in state.items() if not k.startswith("front_end")}
    save_file({**weights, "outputlayer.bias": torch.zeros(5)}, folder / "model.safetensors")
    config = {"architectures": ["DashengModel"], "encoder_kwargs": {**SETTINGS, **changes}, "loss": "BCELoss",
              "model_type": "dasheng", "name": "dasheng-base"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    sound = {"f_min": 0, "f_max": 8000, "center": True, "n_fft": 512, "win_size": 512, "hop_size": 160,
             "feature_size": 64, "sampling_rate": 16000}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(sound))
    return folder


@pytest.mark.parity("authors' files ({save})", "a slow reference")
@pytest.mark.parametrize(
    ("save", "samples"),
    [*((save_pt, n) for n in (480, 3_000, 6_240, 6_399, 13_000, 16_000)), (save_hub, 9_000), (save_autoencoder, 9_000)],
)
def test_every_format_gives_the_numbers_of_the_reference_at_any_length(save: Any, samples: int, tmp_path: Path) -> None:
    state = authors_state()
    upstream = load_upstream(save(state, tmp_path))
    assert (upstream.family, upstream.frame_rate, upstream.config.columns) == ("dasheng", 25.0, COLUMNS)
    waveform = noise(samples)
    with torch.no_grad():
        ours = upstream(waveform)
    theirs = reference(state, waveform)
    assert len(ours.hidden_states) == len(theirs) == BLOCKS + 1
    assert ours.lengths.tolist() == [theirs[0].size(0)]
    for a, b in zip(ours.hidden_states, theirs, strict=True):
        torch.testing.assert_close(a[0], b, rtol=0, atol=1e-4)


def test_energies_are_cut_off_below_the_utterance_not_below_the_batch(tmp_path: Path) -> None:
    state = authors_state()
    upstream = load_upstream(save_pt(state, tmp_path))
    quiet = noise(5_000)
    quiet[:, 2_000:3_500] *= 1e-7  # more than 120 dB below what is loudest in this utterance
    batch = torch.cat((1e-3 * quiet, noise(20_000)[:, :5_000] * 1e3))
    longer = torch.nn.functional.pad(batch, (0, 13_000), value=0.5)
    with torch.no_grad():
        ours = upstream(longer, torch.tensor([5_000, 18_000])).hidden_states
    torch.testing.assert_close(ours[-1][0, :8], reference(state, batch[:1])[-1], rtol=0, atol=1e-4)


def test_windows_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    upstream = load_upstream(save_pt(authors_state(), tmp_path))
    waveform = noise(40_000)
    lengths = [40_000, 30_001, 6_400, 6_399, 2_000]
    with torch.no_grad():
        batch = upstream(waveform.expand(5, -1), torch.tensor(lengths))
        for row, length in enumerate(lengths):
            alone = upstream(waveform[:, :length])
            for a, b in zip(batch.hidden_states, alone.hidden_states, strict=True):
                torch.testing.assert_close(a[row, : b.size(1)], b[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "width", "depth", "millions"), [("dasheng_base", 768, 12, 86), ("dasheng_06b", 1280, 32, 630),
                                             ("dasheng_12b", 1536, 40, 1134)]
)  # fmt: skip
def test_presets_have_the_published_sizes(name: str, width: int, depth: int, millions: int) -> None:
    with torch.device("meta"):
        model = build(PRESETS[name])
        block = torch.nn.TransformerEncoderLayer(width, 8, 4 * width)  # as many weights, in another order
    expected = 2 * 64 + width * (256 + 1) + 252 * width + depth * sum(p.numel() for p in block.parameters()) + 2 * width
    count = sum(p.numel() for p in model.parameters())
    assert count == expected
    assert count // 1_000_000 in {millions, millions - 1}


def test_the_batch_norm_keeps_its_statistics_while_training(tmp_path: Path) -> None:
    upstream = load_upstream(save_pt(authors_state(), tmp_path)).train()
    before = {name: value.clone() for name, value in upstream.named_buffers()}
    upstream(noise(6_000)).hidden_states[-1].sum().backward()
    assert all(torch.equal(before[name], value) for name, value in upstream.named_buffers())


def test_what_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    state = authors_state()
    with pytest.raises(SpeechsslError, match="num_heads"):
        load_upstream(save_pt(state, tmp_path, config={}))
    with pytest.raises(ConfigError, match="pooling"):
        load_upstream(save_pt(state, tmp_path, config={**SETTINGS, "pooling": "token"}))
    lacking = {k: v for k, v in state.items() if k != "init_bn.1.running_var"}
    with pytest.raises(SpeechsslError, match=r"dasheng\.pt lacks 'init_bn\.1\.running_var'"):
        load_upstream(save_pt(lacking, tmp_path))
    with pytest.raises(SpeechsslError, match="position"):
        load_upstream(save_hub(state, tmp_path, target_length=48))
    with pytest.raises(ConfigError, match="patch_stride"):
        load_upstream(save_hub(state, tmp_path, patch_stride=[64, 2]))


def test_models_of_square_patches_are_not_taken_for_it(tmp_path: Path) -> None:
    state = authors_state() | {"freq_pos_embed": torch.zeros(1, WIDTH, 4, 1)}
    assert FORMATS.read_file({"model": state, "config": SETTINGS}, origin="x") is None
    with pytest.raises(SpeechsslError, match=r"dasheng\.pt"):
        load_upstream(save_pt(state, tmp_path))
