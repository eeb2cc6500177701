"""Metrics of spoofing detection against loops, scikit-learn and what can be worked out by hand."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import fsolve
from scipy.stats import norm
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from speechssl.errors import SpeechsslError
from speechssl.metric import detection_interval
from speechssl.metric.agnostic_interval import agnostic_dcf_interval
from speechssl.metric.calibration import (
    actual_dcf,
    fit_calibration,
    fit_fusion,
    fit_isotonic,
    is_calibrated,
    llr_cost,
    min_llr_cost,
)
from speechssl.metric.detection import equal_error_rate, min_dcf
from speechssl.metric.detection_interval import POINTS, DetectionBootstrap
from speechssl.metric.interval import equal_error_rate_interval
from speechssl.metric.tandem import (
    ASVSPOOF5_RATES,
    AgnosticCosts,
    AsvErrorRates,
    TandemCosts,
    asv_error_rates,
    min_agnostic_dcf,
    min_tandem_dcf,
    tandem_weights,
)
from speechssl.metric.tandem_eer import concurrent_tandem_eer

Floats = NDArray[np.float64]
scores = st.lists(st.integers(-30, 30).map(float), min_size=1, max_size=30)
rates = st.floats(0.01, 0.6)
COSTS = {"p_target": 0.95, "cost_miss": 1.0, "cost_false_alarm": 10.0}


def official_curve(positive: list[float], *others: list[float]) -> list[tuple[float, ...]]:
    """Miss rate and acceptance rates after each trial of the merged list, positive ones first among equals."""
    sides = [positive, *others]
    merged = sorted(((s, side) for side, some in enumerate(sides) for s in some), key=lambda pair: pair[0])
    left = [len(side) for side in sides]
    points = [(0.0, *(1.0 for _ in others))]
    for _, side in merged:
        left[side] -= 1
        points.append((1 - left[0] / len(positive), *(n / len(s) for n, s in zip(left[1:], others, strict=True))))
    return points


@given(scores, scores, rates, rates, rates)
@settings(deadline=None, max_examples=80)
def test_tandem_costs_are_those_of_the_official_loops(
    bona_fide: list[float], spoof: list[float], miss: float, alarm: float, passed: float
) -> None:
    asv = AsvErrorRates(miss, alarm, passed)
    p_tar, p_non, p_spoof = 0.95 * 0.99, 0.95 * 0.01, 0.05
    c1 = p_tar * (1 - 1 * miss) - p_non * 10 * alarm
    c2 = 10 * p_spoof * passed
    legacy = min(c1 * m + c2 * a for m, a in official_curve(bona_fide, spoof)) / min(c1, c2)
    assert min_tandem_dcf(bona_fide, spoof, asv, form="2019") == pytest.approx(legacy, abs=1e-12)
    c0 = p_tar * miss + p_non * 10 * alarm
    revised = min(c0 + c1 * m + c2 * a for m, a in official_curve(bona_fide, spoof)) / (c0 + min(c1, c2))
    assert min_tandem_dcf(bona_fide, spoof, asv) == pytest.approx(revised, abs=1e-12)
    assert legacy <= 1 + 1e-12 and revised <= 1 + 1e-12


def test_tandem_costs_of_published_error_rates_are_those_worked_out_by_hand() -> None:
    # ASVspoof 5, track 2: 0.9405 · (1 - 0.01880141) - 0.0095 · 10 · 0.01881017, and 10 · 0.05 · 0.46070829.
    alone, missed, spoofed = tandem_weights(ASVSPOOF5_RATES, form="2019")
    assert (alone, missed, spoofed) == pytest.approx((0.0, 0.92103031, 0.23035415), abs=1e-7)
    assert tandem_weights(ASVSPOOF5_RATES)[0] == pytest.approx(0.9405 - 0.92103031, abs=1e-7)
    perfect = [1.0, 2.0], [-1.0, 0.0]
    assert min_tandem_dcf(*perfect, ASVSPOOF5_RATES, form="2019") == 0.0
    # Behind a perfect countermeasure the ASV's own errors remain: C0 / (C0 + C2).
    assert min_tandem_dcf(*perfect, ASVSPOOF5_RATES) == pytest.approx(0.01946969 / (0.01946969 + 0.23035415), abs=1e-6)
    # One of four bona fide below one of five spoofs: refuse 1/4, let 1/5 pass, or neither.
    partly = [0.0, 2.0, 3.0, 4.0], [-4.0, -3.0, -2.0, -1.0, 1.0]
    expected = min(0.25 * 0.92103031, 0.2 * 0.23035415) / 0.23035415
    assert min_tandem_dcf(*partly, ASVSPOOF5_RATES, form="2019") == pytest.approx(expected, abs=1e-7)


@given(scores, scores, scores)
@settings(deadline=None, max_examples=60)
def test_errors_of_verification_are_counted_at_its_equal_error_threshold(
    target: list[float], nontarget: list[float], spoof: list[float]
) -> None:
    threshold = equal_error_rate(target, nontarget)[1]
    found = asv_error_rates(target, nontarget, spoof)
    assert found.miss == pytest.approx(sum(s < threshold for s in target) / len(target))
    assert found.false_alarm == pytest.approx(sum(s >= threshold for s in nontarget) / len(nontarget))
    assert found.spoof_false_alarm == pytest.approx(sum(s >= threshold for s in spoof) / len(spoof))
    assert asv_error_rates(target, nontarget, spoof, threshold=-100.0) == AsvErrorRates(0.0, 1.0, 1.0)


@given(scores, scores, scores, st.booleans())
@settings(deadline=None, max_examples=80)
def test_agnostic_costs_are_those_of_the_official_loop(
    target: list[float], nontarget: list[float], spoof: list[float], other: bool
) -> None:
    costs = AgnosticCosts(0.8, 0.15, 0.05, 2.0, 5.0, 30.0) if other else AgnosticCosts()
    miss, alarm, spoofed = (2.0 * 0.8, 5.0 * 0.15, 30.0 * 0.05) if other else (0.9, 10 * 0.05, 20 * 0.05)
    curve = official_curve(target, nontarget, spoof)
    expected = min(miss * m + alarm * a + spoofed * s for m, a, s in curve) / min(miss, alarm + spoofed)
    found, threshold = min_agnostic_dcf(target, nontarget, spoof, costs=costs)
    assert found == pytest.approx(expected, abs=1e-12)
    errors = [np.mean(np.array(target) <= threshold), *(np.mean(np.array(s) > threshold) for s in (nontarget, spoof))]
    at = miss * errors[0] + alarm * errors[1] + spoofed * errors[2]
    assert at / min(miss, alarm + spoofed) == pytest.approx(found, abs=1e-12)


@given(scores, scores)
@settings(deadline=None, max_examples=60)
def test_costs_of_a_countermeasure_are_those_of_the_official_loops(bona_fide: list[float], spoof: list[float]) -> None:
    curve = official_curve(bona_fide, spoof)
    expected = min(0.95 * m + 0.5 * a for m, a in curve) / 0.5
    assert min_dcf(bona_fide, spoof, **COSTS) == pytest.approx(expected, abs=1e-12)
    threshold = -math.log(0.95 / (10 * 0.05))
    missed = sum(s < threshold for s in bona_fide) / len(bona_fide)
    passed = sum(s >= threshold for s in spoof) / len(spoof)
    assert actual_dcf(bona_fide, spoof, **COSTS) == pytest.approx((0.95 * missed + 0.5 * passed) / 0.5, abs=1e-12)
    lost = 0.5 * (
        sum(math.log1p(math.exp(-s)) for s in bona_fide) / len(bona_fide)
        + sum(math.log1p(math.exp(s)) for s in spoof) / len(spoof)
    )
    assert llr_cost(bona_fide, spoof) == pytest.approx(lost / math.log(2), rel=1e-12)


def test_what_no_metric_can_be_made_of_is_refused() -> None:
    with pytest.raises(SpeechsslError, match="spoof_false_alarm"):
        AsvErrorRates(0.1, 0.1, 1.2)
    with pytest.raises(SpeechsslError, match="sum to 1"):
        TandemCosts(p_spoof=0.5)
    with pytest.raises(SpeechsslError, match="cost_spoof"):
        AgnosticCosts(cost_spoof=0.0)
    with pytest.raises(SpeechsslError, match="other ASV scores"):
        min_tandem_dcf([1.0], [0.0], AsvErrorRates(0.1, 0.1, 0.0))
    with pytest.raises(SpeechsslError, match=r"spoof_scores\[0\]"):
        min_agnostic_dcf([1.0], [0.0], [math.nan])


def systems(seed: int, targets: int = 200, nontargets: int = 500) -> tuple[Floats, Floats]:
    """Three systems that err together in part, on scales of their own."""
    rng = np.random.default_rng(seed)
    sides = []
    for number, mean in ((targets, 1.0), (nontargets, -1.0)):
        shared = rng.normal(0, 1, (number, 1))
        sides.append((mean * np.array([1.2, 0.8, 0.2]) + 0.7 * shared + rng.normal(0, 1, (number, 3))) * [1, 10, 0.01])
    return sides[0], sides[1]


@pytest.mark.parametrize("prior", [0.5, 0.2])
def test_fusion_is_the_logistic_regression_of_scikit_learn(prior: float) -> None:
    target, nontarget = systems(0)
    found = fit_fusion(target, nontarget, prior=prior)
    inputs = np.concatenate((target, nontarget)) / [1, 10, 0.01]
    labels = np.repeat([1, 0], [len(target), len(nontarget)])
    weights = np.repeat([prior / len(target), (1 - prior) / len(nontarget)], [len(target), len(nontarget)])
    model = LogisticRegression(C=1e12, tol=1e-12, max_iter=10_000).fit(inputs, labels, sample_weight=1e3 * weights)
    np.testing.assert_allclose(np.array(found.weights) * [1, 10, 0.01], model.coef_[0], atol=1e-4)
    assert found.offset == pytest.approx(float(model.intercept_[0]) - math.log(prior / (1 - prior)), abs=1e-4)


def test_a_fusion_knows_more_than_each_of_its_systems_and_one_system_is_its_calibration() -> None:
    (target, nontarget), (unseen, others) = systems(1), systems(2)
    fused = fit_fusion(target, nontarget)
    alone = [fit_calibration(a, b) for a, b in zip(target.T, nontarget.T, strict=True)]
    costs = [llr_cost(c.apply(a), c.apply(b)) for c, a, b in zip(alone, unseen.T, others.T, strict=True)]
    assert llr_cost(fused.apply(unseen), fused.apply(others)) < min(costs) - 0.02
    one = fit_fusion(target[:, :1], nontarget[:, :1])
    assert (one.weights[0], one.offset) == pytest.approx((alone[0].scale, alone[0].offset))


def test_isotonic_calibration_is_that_of_scikit_learn_with_a_trial_of_each_side_at_both_ends() -> None:
    rng = np.random.default_rng(0)
    target, nontarget = rng.normal(1, 1, 80).round(1), rng.normal(-1, 1, 300).round(1)
    found = fit_isotonic(target, nontarget)
    values = np.concatenate(([-99, -99], target, nontarget, [99, 99]))
    labels = np.concatenate(([1, 0], np.ones(80), np.zeros(300), [1, 0]))
    model = IsotonicRegression().fit(values, labels)
    levels = np.unique(np.concatenate((target, nontarget)))
    posterior = model.predict(levels)
    np.testing.assert_allclose(found.apply(levels), np.log(posterior / (1 - posterior)) - math.log(82 / 302), atol=1e-9)
    assert np.isfinite(found.apply([-1e9, 1e9])).all()
    assert all(a <= b for a, b in pairwise(found.ratios))
    assert llr_cost(found.apply(target), found.apply(nontarget)) - min_llr_cost(target, nontarget) < 0.02
    np.testing.assert_allclose(fit_isotonic([0.0, 1.0], [2.0, 3.0]).apply([-5, 0, 5]), 0.0, atol=1e-12)


def test_scores_are_called_calibrated_where_they_are() -> None:
    target, nontarget = (side[:, 0] for side in systems(3))
    map_ = fit_calibration(target, nontarget)
    ratios = map_.apply(target), map_.apply(nontarget)
    least = min_llr_cost(*ratios)
    assert is_calibrated(llr_cost(*ratios), least)
    for wrong in ([0.1 * r for r in ratios], [r + 3 for r in ratios], [8 * r for r in ratios]):
        assert not is_calibrated(llr_cost(*wrong), least)


def test_intervals_of_few_trials_are_those_of_the_plain_bootstrap() -> None:
    rng = np.random.default_rng(0)
    target, nontarget = rng.normal(2, 1.5, 150).round(1), rng.normal(-1, 1.5, 400).round(1)
    threshold, weights = math.log(0.5 / 0.95), (0.95, 0.5)
    drawn = DetectionBootstrap(target, nontarget, costs=[weights], thresholds=[threshold], replicates=2000)
    plain: dict[str, list[float]] = {"eer": [], "min": [], "at": [], "cllr": [], "line": [], "least": []}
    for _ in range(2000):
        chosen = rng.integers(0, 550, 550)
        a, b = target[chosen[chosen < 150]], nontarget[chosen[chosen >= 150] - 150]
        plain["eer"].append(equal_error_rate(a, b)[0])
        plain["min"].append(min_dcf(a, b, **COSTS))
        plain["at"].append(actual_dcf(a, b, **COSTS))
        plain["cllr"].append(llr_cost(a, b))
        plain["line"].append(equal_error_rate(a, b, interpolate=True)[0])
        plain["least"].append(min_llr_cost(a, b))
    found = {
        "eer": drawn.equal_error_rate(), "min": drawn.least_cost(weights), "at": drawn.cost_at(threshold, weights),
        "cllr": drawn.llr_cost(), "line": drawn.interpolated_error_rate(),
        "least": drawn.min_llr_cost(min_llr_cost(target, nontarget)),
    }  # fmt: skip
    for name, values in plain.items():
        ends = np.quantile(values, [0.025, 0.975])
        np.testing.assert_allclose(found[name], ends, atol=0.12 * (ends[1] - ends[0]), err_msg=name)
    np.testing.assert_allclose(drawn.equal_error_rate(), equal_error_rate_interval(target, nontarget), atol=0.006)


def test_cells_of_many_trials_give_the_intervals_of_the_trials() -> None:
    rng = np.random.default_rng(1)
    target, nontarget = rng.normal(2, 1, 1_500), rng.normal(0, 1, 4_500)
    assert target.size + nontarget.size > 5 * POINTS
    low, high = equal_error_rate_interval(target, nontarget, replicates=2000)
    drawn = DetectionBootstrap(target, nontarget, costs=[(0.95, 0.5)], replicates=2000, seed=1)
    np.testing.assert_allclose(drawn.equal_error_rate(), (low, high), atol=0.1 * (high - low))
    low, high = drawn.equal_error_rate()
    np.testing.assert_allclose(drawn.interpolated_error_rate(), (low, high), atol=0.05 * (high - low))
    resampled = [
        min_llr_cost(*(side[rng.integers(0, side.size, side.size)] for side in (target, nontarget))) for _ in range(400)
    ]
    expected = np.quantile(resampled, [0.025, 0.975])
    ends = drawn.min_llr_cost(min_llr_cost(target, nontarget))
    np.testing.assert_allclose(ends, expected, atol=0.25 * (expected[1] - expected[0]))
    least = min_dcf(target, nontarget, **COSTS)
    ends = drawn.least_cost((0.95, 0.5))
    assert ends[0] < least < ends[1]
    # Standard errors of the two rates at that threshold give the width but for the choice of the threshold itself.
    curve = [(np.mean(target <= t), np.mean(nontarget > t)) for t in np.linspace(-1, 3, 400)]
    miss, alarm = min(curve, key=lambda p: 0.95 * p[0] + 0.5 * p[1])
    spread = math.hypot(1.9 * math.sqrt(miss * (1 - miss) / 1_500), math.sqrt(alarm * (1 - alarm) / 4_500))
    assert ends[1] - ends[0] == pytest.approx(2 * 1.96 * spread, rel=0.12)


@pytest.mark.parametrize("number", [60, 1_200])
def test_intervals_of_agnostic_costs_are_those_of_resampled_trials(number: int) -> None:
    rng = np.random.default_rng(3)
    sides = [rng.normal(mean, 1, number * times).round(2) for mean, times in ((3, 1), (0, 3), (1, 2))]
    assert (6 * number > POINTS) == (number == 1_200)
    plain = []
    for _ in range(1000):
        chosen = np.bincount(rng.integers(0, 6 * number, 6 * number), minlength=6 * number)
        parts = np.split(chosen, np.cumsum([side.size for side in sides])[:-1])
        plain.append(min_agnostic_dcf(*(np.repeat(side, part) for side, part in zip(sides, parts, strict=True)))[0])
    low, high = np.quantile(plain, [0.025, 0.975])
    found = agnostic_dcf_interval(sides, replicates=1000)
    np.testing.assert_allclose(found, (low, high), atol=0.15 * (high - low))
    # Where a unit is a trial nothing changes; where it is many, the interval is wider.
    trials = np.split(np.arange(6 * number), np.cumsum([side.size for side in sides])[:-1])
    np.testing.assert_allclose(agnostic_dcf_interval(sides, units=trials), found, atol=0.15 * (high - low))
    shifted = [side + rng.normal(0, 1, 6)[part % 6] for side, part in zip(sides, trials, strict=True)]
    one, other = (agnostic_dcf_interval(shifted, units=u) for u in (None, [part % 6 for part in trials]))
    assert other[1] - other[0] > 1.5 * (one[1] - one[0])


def test_intervals_over_speakers_are_wider_where_speakers_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    speakers = np.repeat(np.arange(12), 100)
    target = 2 + rng.normal(0, 1, 12)[speakers] + rng.normal(0, 0.5, 1200)
    nontarget = rng.normal(0, 1, 12)[speakers] + rng.normal(0, 0.5, 1200)
    alone = DetectionBootstrap(target, nontarget)
    together = DetectionBootstrap(target, nontarget, target_units=speakers, nontarget_units=speakers)
    for name in ("equal_error_rate", "llr_cost"):
        narrow, wide = getattr(alone, name)(), getattr(together, name)()
        assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])
    exact = equal_error_rate_interval(target, nontarget, target_units=speakers, nontarget_units=speakers)
    np.testing.assert_allclose(together.equal_error_rate(), exact, atol=0.1 * (exact[1] - exact[0]))
    # Of many units a few replicates are drawn at a time, and their cells are counted in a sparse table.
    monkeypatch.setattr(detection_interval, "CHUNK", 100)
    monkeypatch.setattr(detection_interval, "DENSE", 1)
    again = DetectionBootstrap(target, nontarget, target_units=speakers, nontarget_units=speakers)
    np.testing.assert_allclose(again.equal_error_rate(), together.equal_error_rate(), rtol=1e-12)
    np.testing.assert_allclose(again.llr_cost(), together.llr_cost(), rtol=1e-12)
    with pytest.raises(SpeechsslError, match="neither"):
        DetectionBootstrap(target, nontarget, target_units=speakers)


def test_the_concurrent_tandem_rate_is_where_three_rates_meet() -> None:
    """Normal scores have rates that can be solved for; few scores are compared with loops over all thresholds."""
    rng = np.random.default_rng(5)
    means = {"asv": (3.0, 0.0, 2.0), "cm": (1.5, -0.5)}

    def meet(thresholds: Floats) -> list[float]:
        miss = 1 - norm.sf(thresholds[0], means["asv"][0]) * norm.sf(thresholds[1], means["cm"][0])
        alarm = norm.sf(thresholds[0], means["asv"][1]) * norm.sf(thresholds[1], means["cm"][0])
        return [miss - alarm, miss - norm.sf(thresholds[0], means["asv"][2]) * norm.sf(thresholds[1], means["cm"][1])]

    solved = fsolve(meet, [1.5, 0.0])
    rate = 1 - norm.sf(solved[0], means["asv"][0]) * norm.sf(solved[1], means["cm"][0])
    sides = [rng.normal(mean, 1, 100_000) for mean in (*means["asv"], *means["cm"])]
    assert concurrent_tandem_eer(*sides) == pytest.approx(rate, abs=3e-3)
    few = [side[:40] for side in sides]
    best, found = math.inf, math.nan
    for t in sorted(np.concatenate(few[:3]).tolist()):
        miss, alarm, passed = np.mean(few[0] <= t), np.mean(few[1] > t), np.mean(few[2] > t)
        points = [(np.mean(few[3] <= c), np.mean(few[4] > c)) for c in [-9.0, *np.concatenate(few[3:]).tolist()]]
        m, fooled = min(points, key=lambda p: abs(p[0] + (1 - p[0]) * (miss - alarm)))
        if miss < alarm and passed > 0 and m < 1 and abs(alarm / passed - fooled / (1 - m)) < best:
            best, found = abs(alarm / passed - fooled / (1 - m)), fooled * passed
    assert concurrent_tandem_eer(*few) == pytest.approx(found, abs=1e-9)
