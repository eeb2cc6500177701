"""The weighted sum over layers, and frame stacking."""

import pytest
import torch
from torch.nn import functional as F

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.featurizer.stack import stack_factor, stack_frames
from speechssl.featurizer.weighted_sum import WeightedSum
from speechssl.types import HiddenStates


def states(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 3, 7, 5, generator=torch.Generator().manual_seed(seed))  # (K, B, T, D)


@pytest.mark.parametrize("normalize", [False, True])
def test_running_sum_equals_the_stacked_sum_in_value_and_gradient(normalize: bool) -> None:
    module = WeightedSum(4, 5, normalize=normalize)
    with torch.no_grad():
        module.logits.copy_(torch.tensor([0.3, -1.0, 2.0, 0.0]))
    out = module(states())
    out.square().sum().backward()
    logits = module.logits.detach().clone().requires_grad_()
    stacked = F.layer_norm(states(), (5,)) if normalize else states()
    reference = (torch.softmax(logits, 0)[:, None, None, None] * stacked).sum(0)
    reference.square().sum().backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
    torch.testing.assert_close(out, reference, atol=1e-6, rtol=0)
    torch.testing.assert_close(module.logits.grad, logits.grad, atol=1e-5, rtol=1e-5)


def test_weights_begin_equal_and_sum_to_one() -> None:
    torch.testing.assert_close(WeightedSum(4, 5).weights(), torch.full((4,), 0.25))


def test_hidden_states_lists_and_tensors_give_the_same() -> None:
    module, tensor = WeightedSum(4, 5), states()
    expected = module(tensor)
    torch.testing.assert_close(module(list(tensor)), expected, atol=0, rtol=0)
    torch.testing.assert_close(module(HiddenStates(dict(enumerate(tensor)), 4)), expected, atol=0, rtol=0)


def test_bf16_features_are_summed_in_float32_and_pooled_ones_as_well() -> None:
    out = WeightedSum(4, 5)(states().bfloat16())
    assert out.dtype == torch.float32
    assert WeightedSum(4, 5)(states()[:, :, 0]).shape == (3, 5)


def test_one_layer_has_nothing_to_learn() -> None:
    module = WeightedSum(1, 5)
    torch.testing.assert_close(module(states()[:1]), states()[0], atol=0, rtol=0)
    assert not module.logits.requires_grad


def test_wrong_layers_are_refused() -> None:
    with pytest.raises(SpeechsslError, match="4 layers, but holds 3"):
        WeightedSum(4, 5)(states()[:3])
    with pytest.raises(SpeechsslError, match="one shape"):
        WeightedSum(2, 3)([torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)])


def test_stacked_frames_hold_their_neighbours_and_zeros_after_the_end() -> None:
    features = torch.arange(10.0).reshape(1, 5, 2)
    stacked, lengths = stack_frames(features, torch.tensor([5]), 2)
    assert stacked.tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 0]]]
    assert lengths.tolist() == [3]


def test_stacking_brings_every_upstream_to_one_rate() -> None:
    assert [stack_factor(rate, 25.0) for rate in (100.0, 50.0, 25.0, 20.0)] == [4, 2, 1, 1]
    assert stack_factor(49.95, 25.0) == 2
    with pytest.raises(ConfigError, match="30 Hz"):
        stack_factor(50.0, 30.0)
