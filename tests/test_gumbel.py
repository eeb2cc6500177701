"""The Gumbel quantizer against torch's own Gumbel softmax; the laws of all quantizers are in tests/contracts."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.data.batching import make_generator
from speechssl.errors import ConfigError
from speechssl.loss.contrastive import diversity_loss
from speechssl.quantizer.gumbel import GumbelQuantizer


@pytest.fixture(autouse=True)
def _fresh_draws() -> object:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def make(**changes: object) -> GumbelQuantizer:
    return GumbelQuantizer(12, **{"output_width": 8, "groups": 2, "entries": 5, **changes})  # type: ignore[arg-type]


def with_plain_softmax(quantizer: GumbelQuantizer, frames: Tensor, noise: Tensor) -> Tensor:
    """As fairseq: one vector of zeros and a one per frame and group, multiplied by all entries and summed up."""
    x = frames
    for index, layer in enumerate(quantizer.projection):
        x = layer(x if index == 0 else F.gelu(x))
    logits = x.view(len(frames), quantizer.groups, quantizer.entries)
    soft = ((logits + noise) / quantizer.temperature).softmax(dim=2)
    hard = F.one_hot(soft.argmax(dim=2), quantizer.entries).float() - soft.detach() + soft
    book = quantizer.codebook.expand(quantizer.groups, -1, -1)
    return (hard[:, :, :, None] * book).sum(dim=2).flatten(1)


@pytest.mark.parametrize(
    "changes", [{}, {"combine_groups": True}, {"depth": 2, "factor": 3}], ids=["base", "shared", "deep"]
)
def test_training_has_the_values_and_gradients_of_a_straight_through_softmax(changes: dict[str, object]) -> None:
    quantizer = make(**changes)
    quantizer.begin_step(50_000)
    frames = torch.randn(40, 12, requires_grad=True)
    weight = torch.randn(40, 8)
    output = quantizer(frames, generator=make_generator(1))
    grads = torch.autograd.grad((output.quantized * weight).sum(), [frames, *quantizer.parameters()])
    noise = -torch.empty(40, 2, 5).exponential_(generator=make_generator(1)).log()
    expected = with_plain_softmax(quantizer, frames, noise)
    torch.testing.assert_close(output.quantized, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(output.quantized, quantizer.decode(output.codes))
    wanted = torch.autograd.grad((expected * weight).sum(), [frames, *quantizer.parameters()])
    for found, right in zip(grads, wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


def test_choices_in_training_are_as_frequent_as_their_probabilities() -> None:
    quantizer = make(groups=1)
    with torch.no_grad():
        quantizer.projection[0].weight.mul_(0.2)  # type: ignore[operator]
    frame = torch.randn(1, 12).expand(20_000, -1)
    output = quantizer(frame, generator=make_generator(2))
    frequency = torch.bincount(output.codes[:, 0], minlength=5) / 20_000
    torch.testing.assert_close(frequency, output.probability[0] / 20_000, rtol=0, atol=0.015)


def test_evaluation_takes_the_largest_logit_and_draws_nothing() -> None:
    quantizer = make().eval()
    frames = torch.randn(30, 12)
    before = torch.random.get_rng_state()
    output = quantizer(frames)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(output.codes, quantizer.logits(frames).argmax(dim=2))
    assert torch.equal(output.codes, quantizer.encode(frames))
    assert torch.equal(output.quantized, quantizer.decode(output.codes))


def test_probabilities_know_neither_noise_nor_temperature() -> None:
    quantizer = make()
    frames = torch.randn(30, 12)
    first = quantizer(frames, generator=make_generator(1))
    quantizer.begin_step(10**6)
    second = quantizer(frames, generator=make_generator(2))
    assert quantizer.temperature == 0.5
    assert torch.equal(first.probability, second.probability) and torch.equal(first.usage, second.usage)
    assert not torch.equal(first.codes, second.codes)
    torch.testing.assert_close(first.probability.sum(dim=1), torch.full((2,), 30.0))


def test_codes_do_not_depend_on_autocast() -> None:
    quantizer = GumbelQuantizer(512, output_width=256)
    frames = torch.randn(200, 512)
    exact = quantizer(frames, generator=make_generator(1))
    with torch.autocast("cpu", torch.bfloat16):
        half = quantizer(frames, generator=make_generator(1))
    assert torch.equal(exact.codes, half.codes)
    torch.testing.assert_close(exact.probability, half.probability)


def test_it_begins_as_fairseq() -> None:
    quantizer = GumbelQuantizer(512, output_width=256)
    weight = quantizer.projection[0].weight
    assert weight.shape == (640, 512) and quantizer.codebook.shape == (2, 320, 128)  # type: ignore[union-attr]
    assert float(weight.std()) == pytest.approx(1.0, abs=0.01)  # type: ignore[operator]
    assert not bool(quantizer.projection[0].bias.any())  # type: ignore[union-attr, operator]
    assert float(quantizer.codebook.mean()) == pytest.approx(0.5, abs=0.01) and float(quantizer.codebook.min()) >= 0


def test_the_diversity_counts_all_entries_of_all_codebooks() -> None:
    even = torch.full((2, 320), 100 / 320)
    assert float(diversity_loss(even, torch.tensor(100.0))) == pytest.approx(0.0, abs=1e-3)
    one = torch.zeros(2, 320)
    one[:, 3] = 100.0
    assert float(diversity_loss(one, torch.tensor(100.0))) == pytest.approx((640 - 2) / 640, abs=1e-5)
    some = torch.rand(2, 320) * 3
    some = 100 * some / some.sum(dim=1, keepdim=True)
    p = (some / 100).double()
    slow = sum(math.exp(-sum(float(x) * math.log(float(x)) for x in row)) for row in p)
    assert float(diversity_loss(some, torch.tensor(100.0))) == pytest.approx((640 - slow) / 640, abs=1e-4)


def test_a_width_that_groups_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of the groups"):
        make(output_width=9)
