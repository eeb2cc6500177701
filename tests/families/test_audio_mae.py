"""Audio-MAE against a plain reference, written from the paper and the authors' code: one patch, one head at a time."""

import argparse
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torchaudio
from plain_vit import block_weights, hidden_states, norm_weights, normal
from torch import Tensor

from speechssl.errors import SpeechsslError
from speechssl.loading import load_upstream
from upstreams.audio_mae.config import PRESETS
from upstreams.audio_mae.model import build

WIDTH, HEADS, BLOCKS, COLUMNS = 128, 2, 2, 5


def authors_state(*, fine_tuned: bool = False) -> dict[str, Tensor]:
    """Random weights by the authors' names (models_mae.py, models_vit.py)."""
    generator = torch.Generator().manual_seed(0)
    state = {
        "cls_token": normal(generator, 1, 1, WIDTH),
        "pos_embed": normal(generator, 1, 1 + COLUMNS * 8, WIDTH, std=0.3),
        "patch_embed.proj.weight": normal(generator, WIDTH, 1, 16, 16),
        "patch_embed.proj.bias": normal(generator, WIDTH, std=0.2),
        **block_weights(generator, width=WIDTH, ffn_width=96, depth=BLOCKS),
        **norm_weights(generator, "fc_norm" if fine_tuned else "norm", WIDTH),
    }
    if fine_tuned:
        return state | {"head.weight": torch.zeros(527, WIDTH), "head.bias": torch.zeros(527)}
    heads = {"decoder_embed.weight": (64, WIDTH), "mask_token": (1, 1, 64), "decoder_pos_embed": (1, 41, 64),
             "decoder_blocks.0.attn.relative_position_index": (16,), "decoder_norm.bias": (64,),
             "decoder_pred.bias": (256,)}  # fmt: skip
    return state | {name: torch.zeros(shape) for name, shape in heads.items()}


def patches_of(waveform: Tensor) -> list[list[Tensor]]:
    """The scaled spectrogram's patches as vectors, by column and row, by torchaudio's Kaldi filterbank."""
    fbank = torchaudio.compliance.kaldi.fbank(
        waveform - waveform.mean(), htk_compat=True, sample_frequency=16_000, use_energy=False, window_type="hanning",
        num_mel_bins=128, dither=0.0, frame_shift=10,
    )  # fmt: skip
    fbank = (fbank - -4.2677393) / (4.5689974 * 2)
    cut = [fbank[16 * t : 16 * t + 16] for t in range(fbank.size(0) // 16)]
    return [[column[:, 16 * f : 16 * f + 16].reshape(-1) for f in range(8)] for column in cut]


def reference(state: dict[str, Tensor], waveform: Tensor) -> list[Tensor]:
    """Hidden states (columns, 8 x width) of audio that is no longer than the positions."""
    columns = patches_of(waveform)
    tokens = [state["cls_token"][0, 0] + state["pos_embed"][0, 0]]
    for patch in (patch for column in columns for patch in column):
        embedded = state["patch_embed.proj.weight"].flatten(1) @ patch + state["patch_embed.proj.bias"]
        tokens.append(embedded + state["pos_embed"][0, len(tokens)])
    states = hidden_states(torch.stack(tokens), state, depth=BLOCKS, heads=HEADS)
    return [torch.stack([s[1 + 8 * t : 9 + 8 * t].reshape(-1) for t in range(len(columns))]) for s in states]


def noise(samples: int) -> Tensor:
    waveform = torch.randn(1, samples, generator=torch.Generator().manual_seed(1))
    return 0.01 + waveform * torch.linspace(0.02, 0.4, samples)


def checkpoint(state: dict[str, Tensor], form: str) -> Any:
    if form == "weights alone":
        return state
    return {"model": state, "epoch": 32, "args": argparse.Namespace(model="mae_vit_base_patch16"), "scaler": {}}


@pytest.mark.parity("authors' checkpoint ({form})", "a slow reference")
@pytest.mark.parametrize("fine_tuned", [False, True], ids=["pre-trained", "fine-tuned"])
@pytest.mark.parametrize("form", ["authors", "weights alone"])
@pytest.mark.parametrize("frames", [80, 48, 39])
def test_checkpoints_give_the_numbers_of_the_reference(
    fine_tuned: bool, form: str, frames: int, tmp_path: Path
) -> None:
    state = authors_state(fine_tuned=fine_tuned)
    torch.save(checkpoint(state, form), tmp_path / "pretrained.pth")
    upstream = load_upstream(tmp_path / "pretrained.pth")
    assert (upstream.family, upstream.frame_rate) == ("audio_mae", 6.25)
    waveform = noise(400 + 160 * (frames - 1) + 77)
    with torch.no_grad():
        ours = upstream(waveform).hidden_states
    theirs = reference(state, waveform)
    assert len(ours) == len(theirs) == BLOCKS + 1
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a[0], b, rtol=0, atol=1e-4)


def test_longer_audio_is_read_in_windows_whatever_the_batch(tmp_path: Path) -> None:
    state = authors_state()
    torch.save({"model": state}, tmp_path / "pretrained.pth")
    upstream = load_upstream(tmp_path / "pretrained.pth")
    waveform = noise(400 + 160 * 219)  # 220 frames: windows of 5, 5 and 3 columns
    lengths = torch.tensor([waveform.size(1), 400 + 160 * 85, 400 + 160 * 79, 2_800])
    with torch.no_grad():
        whole = upstream(waveform.expand(4, -1), lengths)
    assert whole.lengths.tolist() == [13, 5, 5, 1]
    parts = [reference(state, waveform[:, 12_800 * i : 12_800 * i + 400 + 160 * 79]) for i in range(3)]
    for layer, states in enumerate(zip(*parts, strict=True)):
        torch.testing.assert_close(whole.hidden_states[layer][0], torch.cat(states), rtol=0, atol=1e-4)
        for row in (1, 2, 3):
            alone = upstream(waveform[:, : lengths[row]]).hidden_states[layer][0]
            torch.testing.assert_close(whole.hidden_states[layer][row, : alone.size(0)], alone, rtol=0, atol=1e-5)


def test_fresh_positions_are_those_of_pre_training() -> None:
    model = build(PRESETS["audio_mae_base"])
    assert model.prefix_position is not None
    assert (model.prefix_position == 0).all()
    table = model.position.detach().flatten(0, 1)  # in the order of the patches, frequencies first
    for patch in (0, 1, 63, 64, 200, 511):
        column, row = patch % 64, patch // 64
        expected = []
        for place in (column, row):
            angles = [place / 10_000 ** (i / 192) for i in range(192)]
            expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        torch.testing.assert_close(table[patch], torch.tensor(expected), rtol=0, atol=1e-6)


def test_the_base_model_has_the_size_of_vit_b() -> None:
    with torch.device("meta"):
        model = build(PRESETS["audio_mae_base"])
        block = torch.nn.TransformerEncoderLayer(768, 12, 3072)  # as many weights, in another order
    embeddings = 768 * 257 + 513 * 768 + 768  # of patches, positions, the class token
    expected = embeddings + 12 * sum(p.numel() for p in block.parameters()) + 2 * 768
    assert sum(p.numel() for p in model.parameters()) == expected == 85_648_128


def test_what_is_damaged_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    for change, says in (({"pos_embed": torch.zeros(1, 14, WIDTH)}, "13 positions"), ({"cls_token": None}, "lacks")):
        state = {k: v for k, v in (authors_state() | change).items() if v is not None}
        torch.save({"model": state}, path)
        with pytest.raises(SpeechsslError, match=rf"bad\.pth.*{says}"):
            load_upstream(path)
    torch.save({"model": authors_state() | {"blocks.0.ls1.gamma": torch.zeros(WIDTH)}}, path)
    with pytest.raises(SpeechsslError, match=r"ls1\.gamma"):
        load_upstream(path)


def test_a_vision_transformer_of_images_is_not_taken_for_it(tmp_path: Path) -> None:
    torch.save({"model": authors_state() | {"patch_embed.proj.weight": torch.zeros(WIDTH, 3, 16, 16)}}, tmp_path / "x")
    with pytest.raises(SpeechsslError):
        load_upstream(tmp_path / "x")
