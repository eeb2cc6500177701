"""Confidence intervals by the percentile bootstrap.

Conventions
-----------
What is resampled with replacement is a *unit* (an utterance or a speaker), never the single word or trial: words of one
utterance and trials of one speaker are not independent. A statistic therefore takes counts, how often each unit was
drawn, as a (R, U) array of R replicates of U units, and returns (R,) values; so a thousand replicates are a few matrix
products. Replicates in which the statistic is undefined (NaN) are left out.

A trial between two units is weighted by the product of their counts.

Paper: Efron and Tibshirani 1993, chapter 13; for error rates Bisani and Ney 2004, "Bootstrap estimates for confidence
intervals in ASR performance evaluation"; for trials Poh and Bengio 2007, "Performance generalization in biometric
authentication using joint user-specific and sample bootstraps".
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechssl.errors import SpeechsslError
from speechssl.metric.detection import Floats, merge_order

Statistic = Callable[[Floats], Floats]
"""(R, U) counts -> (R,) values."""

REPLICATES = 1000
LEVEL = 0.95
CHUNK = 4_000_000  # weights held at once: 32 MB


def bootstrap_interval(
    statistic: Statistic, units: int, *, replicates: int = REPLICATES, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of a statistic.

    Args:
        statistic: (R, U) counts -> (R,) values.
        units: U, how many independent units there are.
        replicates: R.
        level: coverage, within (0, 1).
        seed: equal seeds give equal intervals.

    Returns:
        (low, high); (nan, nan) where no replicate is defined.
    """
    if units < 1:
        raise SpeechsslError(f"`units` must be >= 1, but is {units}: there is nothing to resample.")
    generator, shares = np.random.default_rng(seed), np.full(units, 1.0 / units)
    step = max(
        1, CHUNK // units
    )  # the draws are those of all replicates at once, which a million units would not allow
    values = [
        statistic(generator.multinomial(units, shares, size=min(step, replicates - first)).astype(np.float64))
        for first in range(0, replicates, step)
    ]
    return percentile_interval(np.concatenate(values), level)


def percentile_interval(values: Floats, level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of (R,) replicates, those that are NaN left out; (nan, nan) where none is left."""
    values = values[np.isfinite(values)]
    if values.size == 0:
        return float("nan"), float("nan")
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)


def ratio_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    replicates: int = REPLICATES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float]:
    """The interval of sum(numerators) / sum(denominators), such as a word error rate.

    Args:
        numerators: (N,), such as errors per utterance.
        denominators: (N,), such as reference words per utterance.
        groups: (N,) the unit of each item, such as its speaker; None = each item is a unit.
    """
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if groups is not None:
        units = np.unique(np.asarray(groups), return_inverse=True)[1]
        top = np.bincount(units, weights=top).astype(np.float64)
        bottom = np.bincount(units, weights=bottom).astype(np.float64)

    def statistic(counts: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio: Floats = (counts @ top) / (counts @ bottom)
        return ratio

    return bootstrap_interval(statistic, top.size, replicates=replicates, level=level, seed=seed)


def mean_interval(
    values: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    replicates: int = REPLICATES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float]:
    """The interval of the mean of (N,) values; `groups` as in `ratio_interval`."""
    items = np.asarray(values, dtype=np.float64)
    return ratio_interval(items, np.ones_like(items), groups=groups, replicates=replicates, level=level, seed=seed)


def equal_error_rate_interval(
    target_scores: ArrayLike,
    nontarget_scores: ArrayLike,
    *,
    target_units: ArrayLike | None = None,
    nontarget_units: ArrayLike | None = None,
    replicates: int = REPLICATES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float]:
    """The interval of `equal_error_rate` (official convention).

    Args:
        target_scores: (N,).
        nontarget_scores: (M,).
        target_units: (N,) or (N, 2): the unit, or the two units, of each target trial; None = each trial is a unit.
        nontarget_units: (M,) or (M, 2), given where `target_units` is.
    """
    target = np.asarray(target_scores, dtype=np.float64)
    nontarget = np.asarray(nontarget_scores, dtype=np.float64)
    if (target_units is None) != (nontarget_units is None):
        raise SpeechsslError("Give both `target_units` and `nontarget_units`, or neither.")
    order = merge_order(target, nontarget)
    labels = np.concatenate((np.ones(target.size), np.zeros(nontarget.size)))[order]
    if target_units is None or nontarget_units is None:
        members = np.arange(order.size)[:, None]
    else:
        members = _members(target_units, nontarget_units)
    members = members[order]  # (N + M, 1 or 2)

    def statistic(counts: Floats) -> Floats:
        step = max(1, CHUNK // labels.size)
        parts = [_weighted_rates(counts[i : i + step], members, labels) for i in range(0, len(counts), step)]
        return np.concatenate(parts)

    units = int(members.max()) + 1
    return bootstrap_interval(statistic, units, replicates=replicates, level=level, seed=seed)


def _members(target_units: ArrayLike, nontarget_units: ArrayLike) -> NDArray[np.intp]:
    """Numbers the units of all trials, (N + M, 1 or 2)."""
    both = [np.asarray(target_units), np.asarray(nontarget_units)]
    columns = [a[:, None] if a.ndim == 1 else a for a in both]
    if columns[0].shape[1] != columns[1].shape[1]:
        raise SpeechsslError("`target_units` and `nontarget_units` must name equally many units per trial.")
    stacked = np.concatenate(columns)
    return np.unique(stacked, return_inverse=True)[1].reshape(stacked.shape)


def _weighted_rates(counts: Floats, members: NDArray[np.intp], labels: Floats) -> Floats:
    """Equal error rates of (R, U) counts over trials in ascending order of score; NaN where one side is empty."""
    weights = counts[:, members[:, 0]]  # (R, N + M)
    if members.shape[1] == 2:
        # A trial within one unit is drawn with that unit, not with its square.
        other = np.where(members[:, 0] == members[:, 1], 1.0, counts[:, members[:, 1]])
        weights = weights * other
    below_target = np.cumsum(weights * labels, axis=1)
    below_nontarget = np.cumsum(weights * (1.0 - labels), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        miss = below_target / below_target[:, -1:]
        false_alarm = 1.0 - below_nontarget / below_nontarget[:, -1:]
    defined = (below_target[:, -1] > 0) & (below_nontarget[:, -1] > 0)
    at = np.argmin(np.where(defined[:, None], np.abs(miss - false_alarm), 0.0), axis=1)[:, None]
    rates = (np.take_along_axis(miss, at, axis=1) + np.take_along_axis(false_alarm, at, axis=1))[:, 0] / 2.0
    return np.where(defined, rates, np.nan)
