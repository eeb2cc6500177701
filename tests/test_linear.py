"""The linear layer that oneDNN computes on some processors."""

import copy
import gc

import pytest
import torch
from torch import nn

from speechssl.encoder import linear
from speechssl.encoder.linear import Linear

needs_onednn = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available() or not linear.PACKS,
    reason="this processor has no AVX-512",
)


@pytest.mark.parametrize("room", [0, 1 << 30], ids=["as a convolution", "packed"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64, 6), (3, 50, 6), (1, 2, 40, 6), (2, 6), (100, 5)])
def test_it_equals_torchs_layer_with_and_without_gradients(shape, bias, room, monkeypatch):
    monkeypatch.setattr(linear, "MOST_PACKED", room)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = Linear(shape[-1], 7, bias=bias), nn.Linear(shape[-1], 7, bias=bias)
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


@torch.no_grad()
def test_a_changed_weight_changes_the_result():
    layer, x = Linear(8, 8), torch.randn(70, 8)
    layer(x)
    layer.weight.mul_(2.0)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias), rtol=0, atol=1e-5)
    layer.load_state_dict(Linear(8, 8).state_dict())
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias), rtol=0, atol=1e-5)
    layer.weight = nn.Parameter(torch.zeros(8, 8))
    torch.testing.assert_close(layer(x), layer.bias.expand(70, 8), rtol=0, atol=1e-6)


@torch.no_grad()
def test_copies_have_weights_of_their_own():
    layer, x = Linear(8, 8), torch.randn(70, 8)
    before = layer(x)
    other = copy.deepcopy(layer)
    other.weight.zero_()
    torch.testing.assert_close(layer(x), before, rtol=0, atol=0)
    torch.testing.assert_close(other(x), other.bias.expand(70, 8), rtol=0, atol=1e-6)


@torch.no_grad()
def test_it_works_where_torch_can_not_pack(monkeypatch):
    monkeypatch.setattr(linear, "PACKS", False)
    layer, x = Linear(8, 8), torch.randn(70, 8)
    start = Linear.packed_bytes
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias), rtol=0, atol=1e-5)
    assert Linear.packed_bytes == start


@needs_onednn
@torch.no_grad()
def test_what_is_kept_twice_has_a_limit_and_is_given_back(monkeypatch):
    gc.collect()
    start = Linear.packed_bytes
    monkeypatch.setattr(linear, "MOST_PACKED", start + 8 * 8 * 4 + 100)
    first, second, x = Linear(8, 8), Linear(8, 8), torch.randn(70, 8)
    for layer in (first, second):
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias), rtol=0, atol=1e-5)
    assert Linear.packed_bytes == start + 8 * 8 * 4
    del first, layer
    gc.collect()
    assert Linear.packed_bytes == start
