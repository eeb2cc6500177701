"""What makes training on a CPU fast gives the numbers and gradients of torch's own operators."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.conv import conv_over_time
from speechssl.conv_training import can_train, conv_with_gradients
from speechssl.encoder.attention import attend
from speechssl.encoder.dropout import Dropout, dropout, sample_kept
from speechssl.frontend.conv_waveform import ConvWaveform


@pytest.fixture(autouse=True)
def _draws() -> object:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("prob", [0.1, 0.05, 0.5, 0.013])
def test_dropout_drops_as_many_as_asked_and_keeps_the_mean(prob: float) -> None:
    x = torch.ones(1000, 1003, requires_grad=True)
    y = dropout(x, prob)
    dropped = float((y == 0).float().mean())
    assert dropped == pytest.approx(prob, rel=0.03, abs=1e-3)
    assert float(y.detach().mean()) == pytest.approx(1.0, abs=3e-3)
    assert float(y.detach()[y.detach() > 0].std()) == pytest.approx(0.0, abs=1e-6)
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, y.detach())
    rows, columns = ((y.detach() == 0).float().mean(dim=d) for d in (0, 1))
    assert float(rows.std()) < 0.02 and float(columns.std()) < 0.02


def test_dropout_is_repeated_by_its_seed_and_absent_in_evaluation() -> None:
    x = torch.randn(70, 33)
    module = Dropout(0.1)
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(module(x))
    assert torch.equal(*found) and not torch.equal(found[0], x)
    assert module.eval()(x) is x


@pytest.mark.parametrize(("batch", "frames"), [(3, 50), (2, 400), (1, 1100)])
@pytest.mark.parametrize("prob", [0.0, 0.1])
def test_attention_with_gradients_equals_plain_products(batch: int, frames: int, prob: float) -> None:
    lengths = torch.tensor([frames, frames - 9, frames - 20][:batch])
    attended = (torch.arange(frames) < lengths[:, None])[:, None, None, :] if prob else None
    qkv = torch.randn(batch, frames, 3, 4, 16, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(batch, 4, frames, 16)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    dropped = prob or 1e-9  # takes this path in float32, and drops nothing
    torch.manual_seed(1)
    y = attend(query, key, value, attended, dropout=dropped)
    grad = torch.autograd.grad((y * weight).sum(), qkv)[0]
    logits = query @ key.transpose(2, 3) / 4
    weights = (logits if attended is None else logits.masked_fill(~attended, -torch.inf)).softmax(dim=3)
    if prob:
        torch.manual_seed(1)
        weights = weights * _masks(batch, frames, prob)
    expected = weights @ value
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad((expected * weight).sum(), qkv)[0]
    torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-5)


def _masks(batch: int, frames: int, prob: float) -> Tensor:
    """What the pieces of attention draw one after the other, for 4 heads."""
    from speechssl.encoder.attention import _pieces

    kept = torch.zeros(batch, 4, frames, frames)
    for utterances, heads, rows in _pieces(batch, 4, frames):
        shape = kept[utterances, heads, rows].shape
        mask, factor = sample_kept((shape[0] * shape[1], *shape[2:]), prob)
        kept[utterances, heads, rows] = (mask * factor).view(shape)
    return kept


@pytest.mark.parametrize(
    ("shape", "kernel", "settings"),
    [
        ((3, 41, 16, 16), 3, (2, 0, 1)),
        ((2, 42, 8, 24), 3, (2, 0, 1)),
        ((2, 40, 16, 24), 2, (2, 0, 1)),
        ((3, 50, 32, 32), 128, (1, 64, 4)),
        ((2, 70, 32, 64), 19, (1, 9, 4)),
    ],
)
def test_convolutions_with_gradients_equal_torch(
    shape: tuple[int, int, int, int], kernel: int, settings: tuple[int, int, int]
) -> None:
    batch, frames, inputs, outputs = shape
    stride, padding, groups = settings
    tensors = [
        torch.randn(batch, frames, inputs, requires_grad=True),
        torch.randn(outputs, inputs // groups, kernel, requires_grad=True),
        torch.randn(outputs, requires_grad=True),
    ]
    x, weight, bias = tensors
    y = conv_with_gradients(x, weight, bias, stride=stride, padding=padding, groups=groups)
    expected = F.conv1d(x.transpose(1, 2), weight, bias, stride=stride, padding=padding, groups=groups).transpose(1, 2)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    weighting = torch.randn_like(y)
    found, wanted = (torch.autograd.grad((out * weighting).sum(), tensors) for out in (y, expected))
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-4)


def test_convolutions_in_half_precision_take_that_path_and_are_close() -> None:
    x, weight = torch.randn(2, 41, 16, requires_grad=True), torch.randn(16, 16, 3, requires_grad=True)
    assert not can_train(x, weight, stride=2, padding=0, groups=1)
    exact = torch.autograd.grad(conv_over_time(x, weight, None, stride=2).square().sum(), [x, weight])
    with torch.autocast("cpu", torch.bfloat16):
        assert can_train(x, weight, stride=2, padding=0, groups=1)
        y = conv_over_time(x, weight, None, stride=2)
    assert y.dtype == torch.bfloat16
    half = torch.autograd.grad(y.float().square().sum(), [x, weight])
    for one, two in zip(half, exact, strict=True):
        torch.testing.assert_close(one, two, rtol=0.02, atol=0.02 * float(two.abs().max()))


@pytest.mark.parametrize("bias", [False, True])
def test_the_group_norm_within_the_first_convolution_is_a_group_norm(bias: bool) -> None:
    frontend = ConvWaveform(8, kernels=(10, 3), strides=(5, 2), norm="group", bias=bias)
    with torch.no_grad():
        frontend.norms[0].weight.uniform_(0.5, 2)
        frontend.norms[0].bias.uniform_(-1, 1)
    waveform = torch.randn(2, 400) + 0.3
    found = frontend(waveform, torch.tensor([400, 400]))
    first, second = frontend.convs
    x = F.conv1d(waveform[:, None], first.weight, first.bias, stride=5)
    x = F.gelu(F.group_norm(x, 8, frontend.norms[0].weight, frontend.norms[0].bias))
    expected = F.gelu(F.conv1d(x, second.weight, second.bias, stride=2)).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    parameters = list(frontend.parameters())
    weight = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad((y * weight).sum(), parameters) for y in (found, expected))
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)
