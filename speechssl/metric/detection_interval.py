"""Bootstrap intervals of all detection metrics of one set of trials, from few to millions, in a fraction of a second.

Trials in ascending order of score (`merge_scores`) fall into cells, and what is drawn is how often each cell occurs:
for trials that are independent that is a multinomial over the cells (or Poisson, see `draw_trials`), so the cost does
not grow with the trials. Where there are at most POINTS trials each is a cell of its own, and nothing is approximate.
Where there are more, cells are narrow about the thresholds that can win, and wide elsewhere: 100 cells over the five
standard errors on either side of the threshold of equal errors, and over the thresholds whose cost is within five
standard errors of the least. A rate is then off by at most the trials of one cell, a tenth of its standard error; a
loss (Cllr) is its mean over the cell.

R replicates, N targets, M non-targets, C cells, C + 1 points of the curve, U units.

Paper: Efron and Tibshirani 1993, chapter 13; Hanley and MacGibbon 2006 (Poisson); Bisani and Ney 2004 (see
`speechssl.metric.interval`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression
from scipy.special import xlog1py, xlogy

from speechssl.errors import SpeechsslError
from speechssl.metric.detection import Floats, merge_order, validate
from speechssl.metric.interval import CHUNK, LEVEL, REPLICATES, percentile_interval

POINTS = 1024
FINE = 100
"""Cells about a threshold that can win."""
QUANTILES = 64
"""Of each side, between which a cell lies at most."""
REACH = 5.0  # standard errors
DENSE = 50_000_000
"""Entries of a table of units and cells above which it is a sparse one: 400 MB."""

Weights = tuple[float, float]
"""Of misses and of false alarms in a cost."""


class DetectionBootstrap:
    """Replicates of a DET curve, from which intervals of many metrics are read."""

    def __init__(
        self,
        target_scores: ArrayLike,
        nontarget_scores: ArrayLike,
        *,
        costs: Sequence[Weights] = (),
        thresholds: Sequence[float] = (),
        target_units: ArrayLike | None = None,
        nontarget_units: ArrayLike | None = None,
        replicates: int = REPLICATES,
        level: float = LEVEL,
        seed: int = 0,
    ) -> None:
        """
        Args:
            target_scores: (N,); for `llr_cost` natural log-likelihood ratios.
            nontarget_scores: (M,).
            costs: the weights that `least_cost` will be asked for.
            thresholds: those that `cost_at` will be asked for.
            target_units: (N,) what is drawn together, such as a speaker; None = each trial by itself.
            nontarget_units: (M,), given where `target_units` is.
            replicates: R.
            level: coverage, within (0, 1).
            seed: equal seeds give equal intervals.

        Raises:
            SpeechsslError: an empty side, scores that are not finite, or units of one side alone.
        """
        target, nontarget = validate(target_scores, nontarget_scores)
        if (target_units is None) != (nontarget_units is None):
            raise SpeechsslError("Give both `target_units` and `nontarget_units`, or neither.")
        self.level = level
        order = merge_order(target, nontarget)
        scores, labels = np.concatenate((target, nontarget))[order], order < target.size  # (N + M,)
        cuts = _cuts(scores, labels, costs, thresholds)
        self._at = {t: int(np.searchsorted(cuts, np.searchsorted(scores, t, side="right"))) for t in thresholds}
        # Points of the curve where no tie is parted: the first, the last, and those where the score changes.
        inner = cuts[1:-1]
        self._between = np.flatnonzero(np.concatenate(([True], scores[inner - 1] != scores[inner], [True])))
        whole = [np.add.reduceat(side.astype(np.float64), cuts[:-1])[None] for side in (labels, ~labels)]  # (1, C)
        self._least = _isotonic_loss(*whole)[0]
        cells = np.searchsorted(cuts, np.arange(scores.size), side="right") - 1  # (N + M,)
        cells = cells + np.where(labels, 0, cuts.size - 1)  # those of non-targets come after those of targets
        losses = np.logaddexp(0.0, np.where(labels, -scores, scores)) / np.log(2)
        generator = np.random.default_rng(seed)
        columns = 2 * (cuts.size - 1)
        if target_units is None:
            sizes = np.bincount(cells, minlength=columns)
            counts = draw_trials(sizes, replicates, generator)
            means = np.bincount(cells, weights=losses, minlength=columns) / np.maximum(sizes, 1)
            lost = [counts[:, part] @ means[part] for part in (slice(0, columns // 2), slice(columns // 2, columns))]
        else:
            both = [np.asarray(target_units), np.asarray(nontarget_units)]
            units = np.unique(np.concatenate(both), return_inverse=True)[1][order]
            number = int(units.max()) + 1
            table = occurrences(units, cells, number, columns)
            sides = [np.bincount(units, np.where(side, losses, 0.0), number) for side in (labels, ~labels)]
            shares, step = np.full(number, 1.0 / number), max(1, CHUNK // number)
            found = []  # of some replicates each: the draws are those of all at once
            for first in range(0, replicates, step):
                drawn = generator.multinomial(number, shares, size=min(step, replicates - first)).astype(np.float64)
                found.append((drawn @ table, *(drawn @ side for side in sides)))
            counts, *lost = (np.concatenate(parts) for parts in zip(*found, strict=True))
        self._curve(counts, lost)

    def _curve(self, counts: Floats, lost: Sequence[Floats]) -> None:
        """From (R, 2 C) counts and the losses of each side, (R,)."""
        half = counts.shape[1] // 2
        self._counts = counts[:, :half], counts[:, half:]
        below = [np.cumsum(part, axis=1) for part in self._counts]
        with np.errstate(divide="ignore", invalid="ignore"):
            miss, correct = (np.insert(part / part[:, -1:], 0, 0.0, axis=1) for part in below)
            self._losses: Floats = (lost[0] / below[0][:, -1] + lost[1] / below[1][:, -1]) / 2
        self._miss, self._alarm = miss, 1.0 - correct  # (R, C + 1)
        self._defined = (below[0][:, -1] > 0) & (below[1][:, -1] > 0)

    def equal_error_rate(self) -> tuple[float, float]:
        """Of `equal_error_rate` in the official convention."""
        at = np.argmin(np.where(self._defined[:, None], np.abs(self._miss - self._alarm), 0.0), axis=1)[:, None]
        rates = np.take_along_axis(self._miss, at, axis=1) + np.take_along_axis(self._alarm, at, axis=1)
        return self._interval(rates[:, 0] / 2)

    def interpolated_error_rate(self) -> tuple[float, float]:
        """Of `equal_error_rate` on the line between the points of the curve."""
        miss, alarm = self._miss[:, self._between], self._alarm[:, self._between]
        above = np.argmax(miss >= alarm, axis=1)[:, None].clip(min=1)
        (low, high), (before, after) = (
            (np.take_along_axis(side, above - 1, axis=1), np.take_along_axis(side, above, axis=1))
            for side in (miss, alarm)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (before - low) / ((high - low) - (after - before))
        return self._interval((low + share * (high - low))[:, 0])

    def min_llr_cost(self, value: float) -> tuple[float, float]:
        """Of minCllr, which is `value` over the trials themselves; what cells blur is taken off.

        Calibration sees the trials it is measured on: of few hundred trials, replicates lie a little below the value.
        """
        return self._interval(_isotonic_loss(*self._counts) + (value - self._least))

    def least_cost(self, weights: Weights, *, alone: float = 0.0, norm: float | None = None) -> tuple[float, float]:
        """Of (alone + weights · (miss, false alarm)) / norm at its least threshold; norm None = the smaller weight."""
        cost = weights[0] * self._miss + weights[1] * self._alarm
        return self._interval((alone + cost.min(axis=1)) / (min(weights) if norm is None else norm))

    def cost_at(self, threshold: float, weights: Weights) -> tuple[float, float]:
        """Of weights · (miss, false alarm) / the smaller weight at one of the `thresholds`."""
        place = self._at[threshold]
        return self._interval((weights[0] * self._miss[:, place] + weights[1] * self._alarm[:, place]) / min(weights))

    def llr_cost(self) -> tuple[float, float]:
        """Of Cllr."""
        return self._interval(self._losses)

    def _interval(self, values: Floats) -> tuple[float, float]:
        return percentile_interval(np.where(self._defined, values, np.nan), self.level)


def _isotonic_loss(hits: Floats, alarms: Floats) -> Floats:
    """Cllr in bits after pool adjacent violators, (R,), of the targets and non-targets in each cell, (R, C)."""
    found = np.full(len(hits), np.nan)
    for row, (some, others) in enumerate(zip(hits, alarms, strict=True)):
        if some.any() and others.any():
            a, b = 0.5 * some / some.sum(), 0.5 * others / others.sum()
            kept = a + b > 0
            a, b = a[kept], b[kept]
            posterior = isotonic_regression(a / (a + b), weights=a + b).x
            found[row] = -(xlogy(a, posterior).sum() + xlog1py(b, -posterior).sum()) / np.log(2)
    return found


def occurrences(units: NDArray[np.intp], cells: NDArray[np.intp], number: int, columns: int) -> Any:
    """(U, columns) how many trials of each unit lie in each cell, dense or sparse."""
    if number * columns <= DENSE:
        table = np.bincount(units * columns + cells, minlength=number * columns)
        return table.reshape(number, columns).astype(np.float64)
    from scipy.sparse import csr_array

    return csr_array((np.ones(units.size), (units, cells)), shape=(number, columns))


def _cuts(
    scores: Floats, labels: NDArray[np.bool_], costs: Sequence[Weights], thresholds: Sequence[float]
) -> NDArray[np.intp]:
    """The first trial of each cell, and the number of trials, (C + 1,), rising."""
    number = scores.size
    if number <= POINTS:
        return np.arange(number + 1)
    places = [np.searchsorted(scores, thresholds, side="right"), *coarse_cuts([labels, ~labels])]
    targets = int(labels.sum())
    miss = np.insert(np.cumsum(labels) / targets, 0, 0.0)  # (N + M + 1,)
    alarm = 1.0 - np.insert(np.cumsum(~labels) / (number - targets), 0, 0.0)
    spread = np.sqrt(miss * (1 - miss) / targets), np.sqrt(alarm * (1 - alarm) / (number - targets))
    slack = 1.0 / min(targets, number - targets)
    for weights in [(1.0, -1.0), *costs]:
        error = np.hypot(weights[0] * spread[0], weights[1] * spread[1])
        value = weights[0] * miss + weights[1] * alarm
        best = int(np.argmin(np.abs(value) if weights[1] < 0 else value))
        places.append(fine_cuts(value, error, best, 2 * slack * max(weights)))
    return np.unique(np.concatenate(places))


def draw_trials(sizes: NDArray[np.intp], replicates: int, generator: np.random.Generator) -> Floats:
    """How many trials of each cell, of so many trials, are drawn in each replicate: (C,) -> (R, C).

    Of more than POINTS trials their number is left to chance (Poisson), which takes a fifth of the time: rates are of
    the trials drawn, so that this widens no interval.
    """
    total = int(sizes.sum())
    if total <= POINTS:
        return generator.multinomial(total, sizes / total, size=replicates).astype(np.float64)
    counts = np.zeros((replicates, sizes.size))
    there = sizes > 0
    counts[:, there] = generator.poisson(sizes[there], size=(replicates, int(there.sum())))
    return counts


def coarse_cuts(sides: Sequence[NDArray[np.bool_]]) -> list[NDArray[np.intp]]:
    """Both ends of all trials, and quantiles of each side, given as masks over the trials."""
    places = [np.array([0, sides[0].size])]
    for side in map(np.flatnonzero, sides):
        places.append(side[np.linspace(0, side.size - 1, QUANTILES).astype(np.intp)])
    return places


def fine_cuts(value: Floats, error: Floats, best: int, slack: float) -> NDArray[np.intp]:
    """Where a value, of standard errors, may in a replicate be as good as at its best place."""
    near = np.flatnonzero(np.abs(value - value[best]) <= REACH * np.maximum(error, error[best]) + slack)
    return np.linspace(near[0], near[-1] + 1, FINE + 1).astype(np.intp).clip(0, value.size - 1)
