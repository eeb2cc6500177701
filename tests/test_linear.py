"""The linear layer that is computed as a convolution on some processors."""

import pytest
import torch
from torch import nn

from speechssl.encoder import linear
from speechssl.encoder.linear import Linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64, 6), (3, 50, 6), (1, 2, 40, 6), (2, 6), (100, 5)])
def test_it_equals_torchs_layer_with_and_without_gradients(shape, bias, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    ours = Linear(shape[-1], 7, bias=bias)
    theirs = nn.Linear(shape[-1], 7, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    expected = theirs(x)
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-5)
        half = ours.bfloat16()(x.bfloat16())
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.1)
        with torch.autocast("cpu", torch.bfloat16):
            assert theirs(x).dtype == Linear(shape[-1], 7)(x).dtype == torch.bfloat16


def test_many_rows_take_the_convolution_where_it_is_the_faster_one(monkeypatch):
    taken = []
    real = linear.F.conv2d
    monkeypatch.setattr(linear.F, "conv2d", lambda *a, **k: taken.append(1) or real(*a, **k))
    layer, many = Linear(8, 8), torch.randn(linear.LEAST_ROWS, 8)
    with torch.no_grad():
        for capability, times in (("AVX2", 0), ("AVX512", 1)):
            monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
            layer(many)
            layer(many[1:])
            assert len(taken) == times
    layer(many)
    assert len(taken) == 1
