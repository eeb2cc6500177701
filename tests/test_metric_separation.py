"""The scale-invariant signal-to-distortion ratio against loops in plain Python and laws that it must keep."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from speechssl.errors import SpeechsslError
from speechssl.metric.separation import best_order, mean_decibels, reorder, si_sdr, si_sdr_improvement


def slow_si_sdr(estimate: list[float], reference: list[float], *, zero_mean: bool = True) -> float:
    """Le Roux et al. 2019, sample by sample; exact summation by fsum."""
    if zero_mean:
        estimate = [x - math.fsum(estimate) / len(estimate) for x in estimate]
        reference = [x - math.fsum(reference) / len(reference) for x in reference]
    scale = math.fsum(e * s for e, s in zip(estimate, reference, strict=True)) / math.fsum(s * s for s in reference)
    target = [scale * s for s in reference]
    rest = [e - t for e, t in zip(estimate, target, strict=True)]
    return 10 * math.log10(math.fsum(t * t for t in target) / math.fsum(r * r for r in rest))


def noisy(batch: int, sources: int, samples: int, level: float, seed: int) -> tuple[Tensor, Tensor]:
    """References, and estimates with an offset and noise."""
    generator = torch.Generator().manual_seed(seed)
    references = torch.randn(batch, sources, samples, generator=generator)
    noise = torch.randn(batch, sources, samples, generator=generator)
    return references, 0.3 * references + level * noise + 0.05


@pytest.mark.parametrize("zero_mean", [False, True])
@pytest.mark.parametrize("level", [10.0, 0.1, 1e-3])
def test_ratios_are_those_of_a_loop_over_samples(zero_mean: bool, level: float) -> None:
    references, estimates = noisy(3, 2, 400, level, 0)
    lengths = torch.tensor([400, 1, 137])
    lengths[1] = 200
    found = si_sdr(estimates, references, lengths=lengths, zero_mean=zero_mean)
    for b, n in itertools.product(range(3), range(2)):
        valid = int(lengths[b])
        rows = estimates[b, n, :valid].double().tolist(), references[b, n, :valid].double().tolist()
        assert found[b, n].item() == pytest.approx(slow_si_sdr(*rows, zero_mean=zero_mean), abs=1e-5)
    flat = si_sdr(estimates[:, 0], references[:, 0], lengths=lengths, zero_mean=zero_mean)
    torch.testing.assert_close(flat, found[:, 0], rtol=0, atol=1e-9)


def test_a_known_angle_gives_its_ratio() -> None:
    reference, orthogonal = torch.tensor([[1.0, 0, -1, 0], [0, 1, 0, -1]], dtype=torch.float64)
    estimate = 3 * reference + 0.3 * orthogonal
    assert si_sdr(estimate[None], reference[None]).item() == pytest.approx(20.0, abs=1e-6)
    assert si_sdr(estimate[None] + 4, reference[None] + 1).item() == pytest.approx(20.0, abs=1e-6)


def test_an_offset_counts_only_where_the_mean_stays() -> None:
    references = torch.sin(torch.arange(1000) * 0.1)[None]
    references = references - references.mean()
    assert si_sdr(references + 0.5, references, zero_mean=False).item() == pytest.approx(
        slow_si_sdr((references[0].double() + 0.5).tolist(), references[0].double().tolist(), zero_mean=False), abs=1e-5
    )
    assert si_sdr(references + 0.5, references, zero_mean=False).item() < 5
    assert si_sdr(references + 0.5, references).item() > 100


def test_scale_and_sign_of_either_signal_change_nothing() -> None:
    references, estimates = noisy(2, 2, 300, 0.2, 1)
    plain = si_sdr(estimates, references)
    torch.testing.assert_close(si_sdr(-7.0 * estimates, references), plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(si_sdr(estimates, 1e-4 * references), plain, rtol=0, atol=1e-5)


def test_padding_changes_nothing_whatever_it_holds() -> None:
    references, estimates = noisy(2, 3, 300, 0.5, 2)
    lengths = torch.tensor([300, 210])
    garbage = estimates.clone()
    garbage[1, :, 210:] = float("nan")
    wide = torch.nn.functional.pad(garbage, (0, 50), value=float("inf"))
    padded = torch.nn.functional.pad(references, (0, 50), value=9.0)
    for zero_mean in (False, True):
        alone = si_sdr(estimates[1:, :, :210], references[1:, :, :210], zero_mean=zero_mean)
        together = si_sdr(wide, padded, lengths=lengths, zero_mean=zero_mean)
        torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-9)
        shuffled = best_order(wide.nan_to_num(), padded, lengths=lengths, zero_mean=zero_mean)[0]
        torch.testing.assert_close(shuffled[1:], alone, rtol=0, atol=1e-9)


def test_perfect_useless_and_silent_estimates_have_the_documented_limits() -> None:
    reference, orthogonal = torch.tensor([[1.0, 0.0, -1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0, -1.0]])
    assert si_sdr(0.5 * reference, reference).item() == pytest.approx(120.0, abs=1e-2)
    assert si_sdr(orthogonal, reference).item() == pytest.approx(-120.0, abs=1e-2)
    assert si_sdr(torch.zeros(1, 4), reference).item() == pytest.approx(-120.0, abs=1e-2)
    long = torch.randn(1, 160_000, generator=torch.Generator().manual_seed(0))
    assert si_sdr(long * 0.1, long).item() == pytest.approx(120.0, abs=0.1)


def test_improvement_is_over_the_mixture_of_each_source() -> None:
    references, estimates = noisy(2, 2, 500, 0.1, 3)
    mixtures = references.sum(dim=1)
    lengths = torch.tensor([500, 321])
    found = si_sdr_improvement(estimates, references, mixtures, lengths=lengths)
    for b, n in itertools.product(range(2), range(2)):
        valid = int(lengths[b])
        after, clean, before = (x[:valid].double().tolist() for x in (estimates[b, n], references[b, n], mixtures[b]))
        expected = slow_si_sdr(after, clean) - slow_si_sdr(before, clean)
        assert found[b, n].item() == pytest.approx(expected, abs=1e-5)
    same = si_sdr_improvement(mixtures[:, None].expand(2, 2, 500), references, mixtures)
    torch.testing.assert_close(same, torch.zeros(2, 2, dtype=torch.float64))
    single = si_sdr_improvement(estimates[:, 0], references[:, 0], mixtures)
    torch.testing.assert_close(single[:1], found[:1, 0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("sources", [1, 2, 3, 4])
@pytest.mark.parametrize("level", [0.1, 30.0])
def test_the_order_is_the_best_of_all_permutations(sources: int, level: float) -> None:
    references, estimates = noisy(3, sources, 200, level, sources)
    shuffles = np.array([np.random.default_rng(b).permutation(sources) for b in range(3)])
    estimates = torch.stack([estimates[b, shuffles[b].tolist()] for b in range(3)])
    values, order = best_order(estimates, references)
    for b in range(3):
        table = [
            [slow_si_sdr(estimates[b, e].double().tolist(), references[b, r].double().tolist()) for e in range(sources)]
            for r in range(sources)
        ]
        means = {p: sum(table[r][e] for r, e in enumerate(p)) for p in itertools.permutations(range(sources))}
        best = max(means, key=lambda p: means[p])
        assert tuple(order[b].tolist()) == best
        assert values[b].tolist() == pytest.approx([table[r][e] for r, e in enumerate(best)], abs=1e-5)
    torch.testing.assert_close(si_sdr(reorder(estimates, order), references), values, rtol=0, atol=1e-9)
    if level < 1:
        assert [shuffles[b][order[b].numpy()].tolist() for b in range(3)] == [list(range(sources))] * 3


def test_means_are_over_sources_and_then_over_utterances() -> None:
    found = mean_decibels(torch.tensor([[1.0, 3.0], [10.0, 20.0]]))
    assert (found.value, found.n, found.unit) == (8.5, 2, "utterances")
    assert (found.low, found.high) == (2.0, 15.0)
    grouped = mean_decibels([0.0, 2.0, 4.0], groups=["a", "a", "a"])
    assert (grouped.low, grouped.high) == (2.0, 2.0)


def test_bad_input_is_refused_with_its_place() -> None:
    good = torch.tensor([[1.0, -1.0, 0.5], [0.2, 0.3, 0.1]])
    silent = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 4.0]])
    with pytest.raises(SpeechsslError, match=r"references\[1\] is silent"):
        si_sdr(good, silent, lengths=torch.tensor([3, 2]))
    with pytest.raises(SpeechsslError, match=r"references\[0, 1\] is silent"):
        # In float64 the mean of 0.1 thrice is not quite 0.1.
        best_order(good[None], torch.tensor([[[1.0, 2.0, 1.0], [0.1, 0.1, 0.1]]], dtype=torch.float64))
    with pytest.raises(SpeechsslError, match=r"shapes \(2, 3\) and \(2, 2\)"):
        si_sdr(good, good[:, :2])
    with pytest.raises(SpeechsslError, match=r"within 1 and 3, but are \[0, 3\]"):
        si_sdr(good, good, lengths=torch.tensor([0, 3]))
    with pytest.raises(SpeechsslError, match="`estimates` must be finite"):
        si_sdr(good / 0, good)
    with pytest.raises(SpeechsslError, match=r"must be \(B, N, S\)"):
        best_order(good, good)
    with pytest.raises(SpeechsslError, match="at least one utterance"):
        mean_decibels([])
