"""vq-wav2vec against a slow, plain implementation: features, codes, and what they do to precision and gradients."""

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_wav2vec import random_state, reference, settings
from torch import Tensor

from speechssl.errors import AudioError, ConfigError, SpeechsslError
from speechssl.loading import load_upstream
from upstreams.vq_wav2vec.config import PRESETS
from upstreams.vq_wav2vec.model import VqWav2VecUpstream, build

VARIANTS: dict[str, dict[str, Any]] = {
    "gumbel": {"vq_depth": 2, "log_compression": False},
    "gumbel, shared, gelu": {"vq_depth": 3, "combine_groups": True, "activation": "gelu"},
    "gumbel, one layer, narrow": {"vq_depth": 1, "vq_dim": 8, "vq_groups": 4},
    "k-means": {"vq_type": "kmeans"},
    "k-means, shared": {"vq_type": "kmeans", "combine_groups": True, "vq_groups": 3},
}


def saved(folder: Path, **changes: Any) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    args = settings(**{"vq_type": "gumbel", **changes})
    state = random_state(args)
    torch.save({"args": argparse.Namespace(**args), "model": state}, folder / "vq.pt")
    return folder / "vq.pt", args, state


@pytest.fixture(scope="module")
def waveform() -> Tensor:
    return 0.1 * torch.randn(2, 2_000, generator=torch.Generator().manual_seed(0)) + 0.02


@pytest.mark.parity("fairseq args", "slow reference in float64")
@pytest.mark.parametrize("variant", VARIANTS)
def test_features_and_codes_equal_the_plain_implementation(variant: str, waveform: Tensor, tmp_path: Path) -> None:
    path, args, state = saved(tmp_path, **VARIANTS[variant])
    upstream = load_upstream(path)
    assert isinstance(upstream, VqWav2VecUpstream)
    expected, codes = reference(state, args, waveform[0])
    assert codes is not None
    assert len(set(codes.flatten().tolist())) > 3, "a test that hears few codewords shows little"
    with torch.no_grad():
        out = upstream(waveform[:1])
    for ours, theirs in zip(out.hidden_states, expected, strict=True):
        torch.testing.assert_close(ours[0], theirs, rtol=0, atol=1e-4)
    assert torch.equal(upstream.codes(waveform[:1])[0], codes)
    assert upstream.hidden_sizes == (args["vq_dim"] or 12, 12, 12, 12)


@pytest.mark.parametrize("variant", ["gumbel", "k-means"])
def test_codes_do_not_depend_on_the_batch_and_end_with_the_utterance(
    variant: str, waveform: Tensor, tmp_path: Path
) -> None:
    path, args, state = saved(tmp_path, **VARIANTS[variant])
    upstream = load_upstream(path)
    assert isinstance(upstream, VqWav2VecUpstream)
    lengths = torch.tensor([2_000, 900])
    codes = upstream.codes(waveform, lengths)
    assert codes.dtype == torch.int64
    frames = int(upstream.output_lengths(lengths)[1])
    _, expected = reference(state, args, waveform[1, :900])
    assert expected is not None
    assert torch.equal(codes[1, :frames], expected)
    assert (codes[1, frames:] == -1).all()
    with pytest.raises(AudioError, match=r"Utterance 1 .*shorter than one frame"):
        upstream.codes(waveform, torch.tensor([2_000, 10]))


@pytest.mark.parametrize("variant", ["gumbel", "k-means"])
def test_gradients_pass_the_choice_without_changing_a_bit(variant: str, waveform: Tensor, tmp_path: Path) -> None:
    upstream = load_upstream(saved(tmp_path, **VARIANTS[variant])[0])
    with torch.no_grad():
        plain = upstream(waveform).hidden_states
    out = upstream(waveform).hidden_states
    assert all(torch.equal(a, b) for a, b in zip(plain, out, strict=True))
    out[-1].square().sum().backward()
    gradient = upstream.get_parameter("frontend.convs.0.weight").grad
    assert gradient is not None
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("variant", ["gumbel", "k-means"])
def test_codes_stay_the_same_in_bfloat16(variant: str, waveform: Tensor, tmp_path: Path) -> None:
    path, _, _ = saved(tmp_path, **VARIANTS[variant])
    full, half = load_upstream(path), load_upstream(path, dtype=torch.bfloat16)
    assert isinstance(full, VqWav2VecUpstream)
    assert isinstance(half, VqWav2VecUpstream)
    assert half.get_parameter("encoder.blocks.0.conv.weight").dtype == torch.bfloat16
    assert half.get_parameter("frontend.convs.0.weight").dtype == torch.float32
    assert torch.equal(full.codes(waveform), half.codes(waveform))
    plain = full(waveform, layers=[0]).hidden_states[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(full(waveform, layers=[0]).hidden_states[0], plain)
        assert torch.equal(full.codes(waveform), half.codes(waveform))
    assert half(waveform).hidden_states[-1].dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "count"), [("vq_wav2vec_gumbel", 30_999_168), ("vq_wav2vec_kmeans", 29_949_952)])
def test_presets_have_the_published_shapes(name: str, count: int) -> None:
    with torch.device("meta"):
        upstream = build(PRESETS[name])
    assert sum(p.numel() for p in upstream.parameters()) == count
    assert upstream.frame_rate == 100.0
    assert upstream.output_lengths(torch.tensor([10_000])).tolist() == [60]  # as fairseq's README says


def test_what_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of `groups`"):
        load_upstream(saved(tmp_path, vq_groups=4, vq_dim=10)[0])
    with pytest.raises(ConfigError, match="`codebook_width` must be `conv_channels`"):
        load_upstream(saved(tmp_path, vq_type="kmeans", vq_dim=8)[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_missing_weights_have_the_names_of_the_file(variant: str, tmp_path: Path) -> None:
    path, args, state = saved(tmp_path, **VARIANTS[variant])
    for name in [n for n in state if n.startswith("vector_quantizer.")]:
        less = {n: value for n, value in state.items() if n != name}
        torch.save({"args": argparse.Namespace(**args), "model": less}, path)
        with pytest.raises(SpeechsslError, match=re.escape(f"lack '{name}'")):
            load_upstream(path)
