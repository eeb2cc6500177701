"""wav2vec against a slow, plain implementation, from the formats that its checkpoints come in."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_hub import connect, serve
from plain_wav2vec import random_state, reference, settings
from torch import Tensor

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.loading import load_upstream
from speechssl.masked_norm import group_norm
from upstreams.wav2vec.config import PRESETS
from upstreams.wav2vec.model import build

VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {},
    "gelu, silence before": {"activation": "gelu", "agg_zero_pad": True, "log_compression": False},
    "wider context": {"agg_width": 20, "no_conv_bias": True, "non_affine_group_norm": True, "residual_scale": 0.3},
    "no residual": {"agg_width": 20, "skip_connections_agg": False},
}


def fairseq_args(args: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    return {"args": argparse.Namespace(**args), "model": state, "extra_state": {"epoch": 1}}


def fairseq_cfg(args: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    return {"cfg": {"model": {**args, "_name": "wav2vec"}, "task": {"_name": "audio_pretraining"}}, "model": state}


def s3prl(args: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    return {"task_cfg": {}, "model_cfg": {**args, "_name": "wav2vec"}, "model_weight": state}


@pytest.fixture(scope="module")
def waveform() -> Tensor:
    return 0.1 * torch.randn(2, 2_000, generator=torch.Generator().manual_seed(0)) + 0.02


@pytest.mark.parity("{form}", "slow reference in float64")
@pytest.mark.parametrize("form", [fairseq_args, fairseq_cfg, s3prl])
@pytest.mark.parametrize("variant", VARIANTS)
def test_hidden_states_equal_the_plain_implementation(
    variant: str, form: Callable[..., Any], waveform: Tensor, tmp_path: Path
) -> None:
    args = settings(**VARIANTS[variant])
    state = random_state(args)
    torch.save(form(args, state), tmp_path / "wav2vec.pt")
    upstream = load_upstream(tmp_path / "wav2vec.pt")
    assert (upstream.family, upstream.frame_rate) == ("wav2vec", 400.0)
    expected, _ = reference(state, args, waveform[0])
    with torch.no_grad():
        out = upstream(waveform[:1])
    assert int(out.lengths) == len(expected[0])
    for ours, theirs in zip(out.hidden_states, expected, strict=True):
        torch.testing.assert_close(ours[0], theirs, rtol=0, atol=1e-4)


@pytest.mark.parity("fairseq args", "slow reference in float64")
def test_padded_utterances_equal_the_plain_implementation_one_by_one(waveform: Tensor, tmp_path: Path) -> None:
    args = settings()
    state = random_state(args)
    torch.save(fairseq_args(args, state), tmp_path / "wav2vec.pt")
    with torch.no_grad():
        out = load_upstream(tmp_path / "wav2vec.pt")(waveform, torch.tensor([2_000, 900]))
    expected, _ = reference(state, args, waveform[1, :900])
    for ours, theirs in zip(out.hidden_states, expected, strict=True):
        torch.testing.assert_close(ours[1, : int(out.lengths[1])], theirs, rtol=0, atol=1e-4)


def test_group_norm_takes_its_statistics_over_valid_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    norm = torch.nn.GroupNorm(2, 6)
    torch.nn.init.normal_(norm.weight, generator=generator)
    torch.nn.init.normal_(norm.bias, generator=generator)
    x = 3 + torch.randn(3, 6, 40, generator=generator)
    x[1, :, 25:] = 100.0
    lengths = torch.tensor([40, 25, 1])
    ours = group_norm(x, lengths, norm)
    for row, frames in enumerate(lengths.tolist()):
        alone = norm(x[row : row + 1, :, :frames])
        torch.testing.assert_close(ours[row : row + 1, :, :frames], alone, rtol=0, atol=1e-5)
    assert group_norm(x.bfloat16(), lengths, norm.bfloat16()).dtype == torch.bfloat16


def test_the_large_model_has_the_published_shape() -> None:
    with torch.device("meta"):
        upstream = build(PRESETS["wav2vec_large"])
    count = sum(p.numel() for p in upstream.parameters())
    head = 512 * 512 * 12 + 512  # predicts 12 steps ahead; fairseq's README counts 32.5M with it
    assert count == 29_390_848
    assert count + head == 32_537_088
    assert upstream.frame_rate == 100.0
    assert upstream.output_lengths(torch.tensor([464, 465, 10_000])).tolist() == [0, 1, 60]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"aggregator": "gru"}, "aggregator"),
        ({"skip_connections_feat": True}, "skip_connections_feat"),
        ({"conv_feature_layers": "[(12, 10, 5), (13, 4, 2)]"}, "one width"),
        ({"conv_feature_layers": "print('x')"}, "can't be read"),
        ({"conv_aggregator_layers": "[(12, 2, 2)]"}, "stride 1"),
        ({"activation": "tanh"}, "'relu' or 'gelu'"),
    ],
)
def test_parts_that_no_published_model_has_are_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    torch.save(fairseq_args({**settings(), **changes}, random_state(settings())), tmp_path / "odd.pt")
    with pytest.raises((ConfigError, SpeechsslError), match=says):
        load_upstream(tmp_path / "odd.pt")


def test_missing_weights_are_named(tmp_path: Path) -> None:
    state = random_state(settings())
    del state["feature_aggregator.conv_layers.1.1.weight"]
    torch.save(fairseq_args(settings(), state), tmp_path / "less.pt")
    with pytest.raises(SpeechsslError, match=r"less\.pt.*lack 'feature_aggregator\.conv_layers\.1\.1\.weight'"):
        load_upstream(tmp_path / "less.pt")


def test_the_preset_is_fetched_from_the_repository_of_s3prls_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "a" * 40
    folder = tmp_path / "served" / "s3prl" / "converted_ckpts" / commit
    folder.mkdir(parents=True)
    args = settings()
    torch.save(s3prl(args, random_state(args)), folder / "wav2vec_large.pt")
    with serve(tmp_path / "served") as hub:
        hub.refs["s3prl/converted_ckpts"] = {"main": commit}
        connect(hub, tmp_path / "cache", monkeypatch)
        upstream = load_upstream("wav2vec_large")
        assert (upstream.name, upstream.weights) == ("wav2vec_large", "s3prl/converted_ckpts/wav2vec_large.pt")
        with pytest.raises(SpeechsslError, match=r"no file wav2vec_larg\.pt: check its name.*'wav2vec_large\.pt'"):
            load_upstream("s3prl/converted_ckpts/wav2vec_larg.pt")
        with pytest.raises(SpeechsslError, match="does not exist or is private"):
            load_upstream("s3prl/other/wav2vec_large.pt")
    again = load_upstream(f"s3prl/converted_ckpts/wav2vec_large.pt@{commit}")  # from the cache, the hub being gone
    assert again.fingerprint() == upstream.fingerprint()
    assert load_upstream("s3prl/converted_ckpts/wav2vec_large.pt").fingerprint() == upstream.fingerprint()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SpeechsslError, match="HF_HUB_OFFLINE is set"):
        load_upstream("s3prl/converted_ckpts/other.pt")
