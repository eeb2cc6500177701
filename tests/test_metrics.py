"""Detection, transcription and interval metrics against scikit-learn, slow loops and laws."""

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from scipy.stats import bootstrap
from sklearn.metrics import roc_curve

from speechssl.errors import SpeechsslError
from speechssl.metric.detection import detection_error_tradeoff, equal_error_rate, merge_order, min_dcf
from speechssl.metric.interval import (
    _weighted_rates,
    bootstrap_interval,
    equal_error_rate_interval,
    mean_interval,
    ratio_interval,
)
from speechssl.metric.transcription import character_errors, transcription_metrics, word_errors

Floats = NDArray[np.float64]
scores = st.lists(st.integers(-50, 50).map(float), min_size=1, max_size=40)
distinct = st.lists(st.integers(-10_000, 10_000), min_size=4, max_size=60, unique=True)


def slow_official(target: Floats, nontarget: Floats) -> float:
    """The ASVspoof convention as a loop over the merged scores."""
    merged = sorted([(s, 0, 1) for s in target] + [(s, 1, 0) for s in nontarget])
    best, rate, missed, rejected = 1.0, 0.5, 0, 0
    for _, _, is_target in merged:
        missed, rejected = missed + is_target, rejected + 1 - is_target
        miss, alarm = missed / len(target), (len(nontarget) - rejected) / len(nontarget)
        if abs(miss - alarm) < best:
            best, rate = abs(miss - alarm), (miss + alarm) / 2
    return rate


@given(scores, scores)
@settings(deadline=None, max_examples=60)
def test_equal_error_rate_is_the_official_one(target: list[float], nontarget: list[float]) -> None:
    rate, _ = equal_error_rate(target, nontarget)
    assert rate == pytest.approx(slow_official(np.array(target), np.array(nontarget)), abs=1e-12)


@given(scores, scores)
@settings(deadline=None, max_examples=60)
def test_interpolated_equal_error_rate_is_that_of_the_roc_curve(target: list[float], nontarget: list[float]) -> None:
    labels = [1] * len(target) + [0] * len(nontarget)
    false_alarm, hit, _ = roc_curve(labels, target + nontarget)
    expected = brentq(lambda x: 1.0 - x - interp1d(false_alarm, hit)(x), 0.0, 1.0)
    # interp1d on a vertical step returns either end, so only curves that cross on a slope are comparable.
    curve = detection_error_tradeoff(target, nontarget)
    at = int(np.argmax(curve.miss >= curve.false_alarm))
    if curve.false_alarm[at - 1] > curve.false_alarm[at]:
        assert equal_error_rate(target, nontarget, interpolate=True)[0] == pytest.approx(expected, abs=1e-9)


@given(distinct, st.data())
@settings(deadline=None, max_examples=60)
def test_negated_scores_give_the_complement(values: list[int], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(values) - 1))
    target, nontarget = np.array(values[:cut], dtype=float), np.array(values[cut:], dtype=float)
    rate = equal_error_rate(target, nontarget, interpolate=True)[0]
    assert equal_error_rate(-target, -nontarget, interpolate=True)[0] == pytest.approx(1 - rate, abs=1e-12)


@given(distinct, st.data())
@settings(deadline=None, max_examples=40)
def test_monotone_maps_and_order_change_nothing(values: list[int], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(values) - 1))
    target, nontarget = np.array(values[:cut], dtype=float), np.array(values[cut:], dtype=float)
    mapped = [np.tanh(a[::-1] / 20_000) * 3 + 1 for a in (target, nontarget)]
    assert equal_error_rate(*mapped)[0] == equal_error_rate(target, nontarget)[0]
    assert min_dcf(*mapped, p_target=0.1) == min_dcf(target, nontarget, p_target=0.1)


@given(scores, scores, st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=60)
def test_min_dcf_is_the_minimum_over_thresholds_and_at_most_one(
    target: list[float], nontarget: list[float], prior: float
) -> None:
    costs = []
    for threshold in [-np.inf, *target, *nontarget]:
        miss = np.mean(np.array(target) <= threshold)
        alarm = np.mean(np.array(nontarget) > threshold)
        costs.append((prior * miss * 2 + (1 - prior) * alarm) / min(2 * prior, 1 - prior))
    found = min_dcf(target, nontarget, p_target=prior, cost_miss=2.0)
    assert found == pytest.approx(min(costs), abs=1e-12)
    assert found <= 1 + 1e-12


def test_separated_scores_have_no_errors_and_the_threshold_separates() -> None:
    rate, threshold = equal_error_rate([2.0, 3.0], [0.0, 1.0])
    assert (rate, min_dcf([2.0, 3.0], [0.0, 1.0], p_target=0.01)) == (0.0, 0.0)
    assert 1.0 <= threshold < 2.0


def test_det_curve_runs_from_accepting_all_to_rejecting_all() -> None:
    curve = detection_error_tradeoff([1.0, 2.0, 2.0], [0.0, 2.0])
    np.testing.assert_allclose(curve.miss, [0, 0, 1 / 3, 1], atol=1e-12)
    np.testing.assert_allclose(curve.false_alarm, [1, 0.5, 0.5, 0], atol=1e-12)
    np.testing.assert_allclose(curve.thresholds, [-np.inf, 0, 1, 2])


@pytest.mark.parametrize(
    ("target", "nontarget", "word"),
    [
        ([], [1.0], "target_scores"),
        ([1.0], [], "nontarget_scores"),
        ([1.0, float("nan")], [0.0], r"target_scores\[1\]"),
    ],
)
def test_degenerate_scores_are_refused_by_name(target: list[float], nontarget: list[float], word: str) -> None:
    with pytest.raises(SpeechsslError, match=word):
        equal_error_rate(target, nontarget)
    with pytest.raises(SpeechsslError, match=word):
        min_dcf(target, nontarget, p_target=0.01)


def test_a_prior_out_of_range_is_refused() -> None:
    with pytest.raises(SpeechsslError, match="p_target"):
        min_dcf([1.0], [0.0], p_target=1.0)


def test_mean_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 200)
    low, high = mean_interval(values, replicates=4000)
    reference = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1))
    assert low == pytest.approx(reference.confidence_interval.low, abs=0.02)
    assert high == pytest.approx(reference.confidence_interval.high, abs=0.02)


def test_grouped_intervals_are_wider_where_groups_differ() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(8), 50)
    values = rng.normal(0, 1, 8)[groups] + rng.normal(0, 0.1, 400)
    low, high = mean_interval(values)
    grouped_low, grouped_high = mean_interval(values, groups=groups)
    assert grouped_high - grouped_low > 2 * (high - low)


def test_equal_error_rate_interval_covers_the_estimate_and_repeats_with_its_seed() -> None:
    rng = np.random.default_rng(0)
    target, nontarget = rng.normal(1, 1, 300), rng.normal(-1, 1, 900)
    first = equal_error_rate_interval(target, nontarget, seed=3)
    assert first == equal_error_rate_interval(target, nontarget, seed=3)
    assert first != equal_error_rate_interval(target, nontarget, seed=4)
    assert first[0] < equal_error_rate(target, nontarget)[0] < first[1]


def test_equal_error_rate_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth = 0.158655  # of unit normals two apart: Phi(-1)
    hits = 0
    for trial in range(60):
        target, nontarget = rng.normal(2, 1, 150), rng.normal(0, 1, 150)
        low, high = equal_error_rate_interval(target, nontarget, replicates=300, seed=trial)
        hits += low <= truth <= high
    assert 50 <= hits <= 60


def test_a_replicate_that_draws_every_unit_once_is_the_plain_rate() -> None:
    rng = np.random.default_rng(0)
    units = rng.integers(0, 10, (200, 2))
    values = rng.normal(0, 1, 200)
    order = merge_order(values[:80], values[80:])
    labels = np.concatenate((np.ones(80), np.zeros(120)))[order]
    rates = _weighted_rates(np.stack((np.ones(10), np.arange(10.0))), units[order], labels)
    assert rates[0] == pytest.approx(equal_error_rate(values[:80], values[80:])[0], abs=1e-12)
    kept = units.min(axis=1) > 0  # a unit that is not drawn takes its trials along
    again = _weighted_rates(np.stack((np.r_[0.0, np.ones(9)],)), units[order], labels)
    target, nontarget = values[:80][kept[:80]], values[80:][kept[80:]]
    assert again[0] == pytest.approx(equal_error_rate(target, nontarget)[0], abs=1e-12)


def test_units_of_only_one_side_are_refused() -> None:
    with pytest.raises(SpeechsslError, match="neither"):
        equal_error_rate_interval([1.0, 2.0], [0.0], target_units=[0, 1])


def test_an_undefined_statistic_gives_no_interval() -> None:
    low, high = bootstrap_interval(lambda counts: np.full(len(counts), np.nan), 3)
    assert np.isnan(low) and np.isnan(high)
    with pytest.raises(SpeechsslError, match="units"):
        bootstrap_interval(lambda counts: counts[:, 0], 0)


texts = st.lists(st.text(alphabet="ab č", min_size=1, max_size=12).filter(str.strip), min_size=1, max_size=6)


@given(texts, st.data())
@settings(deadline=None, max_examples=50)
def test_pooled_rates_are_those_of_jiwer(references: list[str], data: st.DataObject) -> None:
    hypotheses = [data.draw(st.text(alphabet="ab č", max_size=12)) for _ in references]
    metrics = transcription_metrics(references, hypotheses)
    assert metrics["wer"].value == pytest.approx(jiwer.wer(references, hypotheses), abs=1e-12)
    assert metrics["cer"].value == pytest.approx(jiwer.cer(references, hypotheses), abs=1e-12)


def test_rates_by_group_pool_within_the_group() -> None:
    counts = word_errors(["a b c", "a", "x y"], ["a b", "b", "x y"])
    groups = counts.rates_by(["cs", "cs", "nl"])
    assert (groups["cs"].value, groups["cs"].n, groups["cs"].unit) == (0.5, 4, "words")
    assert (groups["nl"].value, groups["nl"].low, groups["nl"].high) == (0.0, 0.0, 0.0)
    assert counts.rate().value == pytest.approx(2 / 6, abs=1e-12)


def test_empty_references_and_unequal_lists_are_refused() -> None:
    with pytest.raises(SpeechsslError, match=r"references\[1\]"):
        word_errors(["a", " "], ["a", "b"])
    with pytest.raises(SpeechsslError, match="as many"):
        character_errors(["a"], [])
    with pytest.raises(SpeechsslError, match="no references"):
        word_errors([], [])


def test_ratio_interval_of_equal_items_has_no_width() -> None:
    assert ratio_interval([1, 1, 1], [4, 4, 4]) == (0.25, 0.25)


def test_replicates_drawn_in_parts_are_those_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=40)
    whole = mean_interval(values)
    monkeypatch.setattr("speechssl.metric.interval.CHUNK", 130)
    assert mean_interval(values) == pytest.approx(whole, abs=1e-12)
