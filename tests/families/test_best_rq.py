"""BEST-RQ's model: what its stem computes and sees, and which settings it takes."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from speechssl.errors import ConfigError
from speechssl.loading import build_upstream
from speechssl.registry import find_preset
from upstreams.best_rq.config import PRESETS, BestRqConfig
from upstreams.best_rq.model import ConvStem, build


def small(**changes):
    shape = {"width": 32, "ffn_width": 48, "heads": 4, "depth": 2, "stem_channels": (6, 4), "block_kernel": 5}
    return build_upstream("best_rq", dataclasses.replace(BestRqConfig(), **{**shape, **changes}), seed=0).eval()


def test_the_stem_is_two_strided_convolutions():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stem = ConvStem(8, channels=(3, 2), dropout=0.1).eval()
    features = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1))
    for row, found in zip(features, stem(features), strict=True):
        x = row.reshape(1, 12, 8)  # (C, T, M)
        for conv, norm in zip(stem.convs, stem.norms, strict=True):
            C, T, M = x.shape
            padded = torch.zeros(C, T + 1, M + 1)
            padded[:, 1:, 1:] = x
            y = torch.zeros(conv.out_channels, T // 2, M // 2)
            for time in range(T // 2):
                for band in range(M // 2):
                    seen = padded[:, 2 * time : 2 * time + 3, 2 * band : 2 * band + 3]
                    y[:, time, band] = (conv.weight * seen).sum(dim=(1, 2, 3)) + conv.bias
                    y[:, time, band] = F.layer_norm(y[:, time, band].clone(), (len(y),), norm.weight, norm.bias)
            x = F.leaky_relu(y)
        torch.testing.assert_close(found, x.permute(1, 0, 2).reshape(3, -1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_no_frame_of_the_stem_sees_mel_frames_after_its_own():
    stem = ConvStem(8, channels=(3, 2), dropout=0.0)
    features = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(1))
    changed = features.clone()
    changed[:, 3:] += 1.0
    assert torch.equal(stem(features)[:, :3], stem(changed)[:, :3])
    assert not torch.equal(stem(features)[:, 3:], stem(changed)[:, 3:])


def test_tiny_is_the_model_that_other_families_call_tiny():
    _, hubert = find_preset("hubert_tiny")
    ours, theirs = build(PRESETS["best_rq_tiny"]), build_upstream("hubert", hubert, seed=0)
    absent = ("mask_embedding", "feature_norm")
    weights = {name: value.shape for name, value in theirs.state_dict().items() if not name.startswith(absent)}
    assert {name: value.shape for name, value in ours.state_dict().items()} == weights
    assert ours.frame_rate == theirs.frame_rate == 50.0


def test_base_hears_at_25_frames_a_second():
    upstream = small()
    output = upstream(0.1 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0)))
    assert upstream.frame_rate == output.frame_rate == 25.0
    assert output.lengths.tolist() == [24]  # 98 mel frames
    assert [PRESETS["best_rq_base"].width, PRESETS["best_rq_base"].ffn_width] == [576, 2048]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stack": 2}, "`stack` must be 4 for the conv stem, but is 2"),
        ({"num_mel_bins": 30}, "`num_mel_bins` must be a multiple of 4"),
        ({"frontend": "conv_waveform"}, "`frontend` of a best_rq must be 'log_mel'"),
        ({"stem": "rnn"}, "`stem` must be 'conv' or 'linear'"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        small(**changes)
