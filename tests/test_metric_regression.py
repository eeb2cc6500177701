"""Regression metrics against scipy, replicate by replicate."""

import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import r2_score

from speechssl.errors import SpeechsslError
from speechssl.metric.regression import (
    MEASURES,
    regression_metrics,
    system_means,
    weighted_concordance,
    weighted_determination,
    weighted_kendall,
    weighted_pearson,
    weighted_spearman,
)

Floats = NDArray[np.float64]


def lin(references: Floats, hypotheses: Floats) -> SimpleNamespace:
    """Lin 1989, eq. 3, in plain sums."""
    size = len(references)
    x, y = sum(references) / size, sum(hypotheses) / size
    pairs = list(zip(references, hypotheses, strict=True))
    covariance = sum((a - x) * (b - y) for a, b in pairs) / size
    variances = sum((a - x) ** 2 + (b - y) ** 2 for a, b in pairs) / size
    bottom = variances + (x - y) ** 2
    return SimpleNamespace(statistic=2 * covariance / bottom if variances > 1e-15 else float("nan"))


def explained(references: Floats, hypotheses: Floats) -> SimpleNamespace:
    spread = np.ptp(references) if len(references) else 0.0
    return SimpleNamespace(statistic=r2_score(references, hypotheses) if spread else float("nan"))


PLAIN: dict[str, Callable[[Floats, Floats], Any]] = {
    "r2": explained,
    "ccc": lin,
    "lcc": stats.pearsonr,
    "srcc": stats.spearmanr,
    "ktau": stats.kendalltau,
}
ORDERS = ("lcc", "srcc", "ktau")
WEIGHTED = {
    "r2": weighted_determination,
    "ccc": weighted_concordance,
    "lcc": weighted_pearson,
    "srcc": weighted_spearman,
    "ktau": weighted_kendall,
}


def scores(size: int, seed: int, *, tied: bool) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    references = rng.normal(3, 1, size)
    hypotheses = 0.7 * references + rng.normal(1, 0.7, size)
    return (np.round(references), np.round(hypotheses, 1)) if tied else (references, hypotheses)


def plain(name: str, references: Floats, hypotheses: Floats) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns where one side is constant, and returns NaN
        return float(PLAIN[name](references, hypotheses).statistic)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", [2, 3, 50])
def test_values_are_those_of_scipy(size: int, tied: bool) -> None:
    references, hypotheses = scores(size, 4, tied=tied)
    hypotheses[0] += 0.01
    found = regression_metrics(references, hypotheses)
    assert found["mse"].value == pytest.approx(sum((references - hypotheses) ** 2) / size, abs=1e-12)
    assert found["rmse"].value == pytest.approx((sum((references - hypotheses) ** 2) / size) ** 0.5, abs=1e-12)
    assert found["mae"].value == pytest.approx(sum(abs(references - hypotheses)) / size, abs=1e-12)
    assert found["rmse"].low == pytest.approx((found["mse"].low or 0.0) ** 0.5, abs=1e-12)
    for name in PLAIN:
        assert found[name].value == pytest.approx(plain(name, references, hypotheses), abs=1e-12)
        assert (found[name].n, found[name].unit) == (size, "utterances")


@pytest.mark.parametrize("name", list(PLAIN))
@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_repetitions(name: str, tied: bool) -> None:
    references, hypotheses = scores(23, 1, tied=tied)
    weights = np.random.default_rng(2).integers(0, 4, (40, 23)).astype(np.float64)
    found = WEIGHTED[name](weights, references, hypotheses)
    for row, value in zip(weights.astype(int), found, strict=True):
        expected = plain(name, np.repeat(references, row), np.repeat(hypotheses, row))
        assert value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", list(PLAIN))
def test_replicates_without_spread_are_undefined(name: str) -> None:
    references = hypotheses = np.array([1.0, 0.1, 0.1])  # the mean of 0.1 thrice is not 0.1 in floating point
    weights = np.array([[0.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    found = WEIGHTED[name](weights, references, hypotheses)
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_are_quantiles_of_scipy_on_the_same_replicates(grouped: bool) -> None:
    references, hypotheses = scores(30, 3, tied=True)
    units = np.arange(30) % 7 if grouped else np.arange(30)
    found = regression_metrics(references, hypotheses, groups=[str(u) for u in units] if grouped else None, seed=5)
    size = int(units.max()) + 1
    draws = np.random.default_rng(5).multinomial(size, np.full(size, 1 / size), size=1000)
    for name in PLAIN:
        values = np.array([plain(name, *(np.repeat(v, d[units]) for v in (references, hypotheses))) for d in draws])
        low, high = np.quantile(values[np.isfinite(values)], [0.025, 0.975])
        assert found[name].low == pytest.approx(low, abs=1e-9)
        assert found[name].high == pytest.approx(high, abs=1e-9)


def test_systems_are_averaged_before_they_are_compared() -> None:
    references, hypotheses = scores(60, 6, tied=False)
    systems = [f"system {i % 5 if i < 40 else 7}" for i in range(60)]
    found = regression_metrics(references, hypotheses, systems=systems)
    names = sorted(set(systems))
    means = [
        np.array([np.mean([v for v, s in zip(values, systems, strict=True) if s == name]) for name in names])
        for values in (references, hypotheses)
    ]
    np.testing.assert_allclose(system_means(references, systems), means[0], atol=1e-12)
    for name in PLAIN:
        assert found[f"system {name}"].value == pytest.approx(plain(name, *means), abs=1e-12)
        assert (found[f"system {name}"].n, found[f"system {name}"].unit) == (6, "systems")
    assert found["system mse"].value == pytest.approx(np.mean((means[0] - means[1]) ** 2), abs=1e-12)
    assert set(found) == {f"{level}{m}" for level in ("", "system ") for m in MEASURES}


def test_perfect_and_reversed_scores_have_the_extreme_correlations() -> None:
    references = np.array([1.0, 2.0, 4.0, 4.5])
    for sign in (1, -1):
        found = regression_metrics(references, sign * references)
        assert [found[n].value for n in ORDERS] == pytest.approx([sign] * 3, abs=1e-12)
    assert regression_metrics(references, references)["ccc"].value == 1.0
    assert regression_metrics(references, references + 1.0)["lcc"].value == pytest.approx(1.0, abs=1e-12)
    assert regression_metrics(references, references + 1.0)["ccc"].value < 0.9
    assert regression_metrics(references, references)["mse"].value == 0.0


def test_a_constant_hypothesis_has_no_correlation() -> None:
    found = regression_metrics([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], systems=["a", "b", "b"])
    assert [(found[n].value, found[n].low, found[n].high) for n in PLAIN if n != "r2"] == [(0.0, None, None)] * 4
    assert found["r2"].value == 0.0
    assert found["system lcc"].value == 0.0
    assert found["mse"].value == pytest.approx(2 / 3, abs=1e-12)


def test_bad_input_is_refused_with_its_place() -> None:
    with pytest.raises(SpeechsslError, match="there are 1 and 2"):
        regression_metrics([1.0, 2.0], [1.0])
    with pytest.raises(SpeechsslError, match=r"hypotheses\[1\] = nan"):
        regression_metrics([1.0, 2.0], [1.0, float("nan")])
    with pytest.raises(SpeechsslError, match=r"`references` must have one dimension, but have shape \(2, 1\)"):
        regression_metrics([[1.0], [2.0]], [1.0, 2.0])
    with pytest.raises(SpeechsslError, match="at least 2 utterances to correlate, but there are 1"):
        regression_metrics([1.0], [1.0])
    with pytest.raises(SpeechsslError, match="at least 2 systems to correlate, but there are 1"):
        regression_metrics([1.0, 2.0], [1.0, 2.0], systems=["a", "a"])
    with pytest.raises(SpeechsslError, match=r"references of all 2 utterances are 3\.0"):
        regression_metrics([3.0, 3.0], [1.0, 2.0])
    with pytest.raises(SpeechsslError, match=r"some of mse, rmse, .*, but holds 'bias'"):
        regression_metrics([1.0, 2.0], [1.0, 2.0], measures=["bias"])
    with pytest.raises(SpeechsslError, match="`systems` must have one entry per utterance, but have 1 for 2"):
        regression_metrics([1.0, 2.0], [1.0, 2.0], systems=["a"])


def test_intervals_of_a_thousand_scores_are_fast() -> None:
    references, hypotheses = scores(1066, 0, tied=False)
    begin = time.perf_counter()
    regression_metrics(references, hypotheses)
    assert time.perf_counter() - begin < 10.0  # about 0.5 s; the bound only catches a loop over replicates and pairs
