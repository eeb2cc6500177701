"""Regression metrics of numbers that are told for every frame, such as a pitch: for millions of frames.

N frames, U resampled units, R replicates.

Conventions
-----------
References and hypotheses are (N,) real numbers in the same order. Frames of one utterance are not independent, so
whole utterances (or speakers) are resampled. Every measure here is a function of sums over frames, so that a replicate
adds up the sums of the units that it drew: U x 8 numbers, however many frames there are. Ranks are no such function:
'srcc' and 'ktau' are left to `speechssl.metric.regression`, which also has the definitions.

Metrics
-------
'mse', 'rmse', 'mae', 'r2', 'ccc', 'lcc'.
"""

from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from speechssl.errors import SpeechsslError
from speechssl.metric.detection import Floats
from speechssl.metric.interval import bootstrap_interval
from speechssl.result import MetricValue

FRAME_MEASURES = ("mse", "rmse", "mae", "r2", "ccc", "lcc")
ROUNDING = 1e-12  # share of the variance of all frames that counts as none in a replicate


def frame_regression_metrics(
    references: ArrayLike, hypotheses: ArrayLike, groups: ArrayLike, *, seed: int = 0
) -> dict[str, MetricValue]:
    """All measures, over all frames together.

    Args:
        references: (N,) true numbers.
        hypotheses: (N,) predicted numbers.
        groups: (N,) what is resampled, such as the utterance of each frame.
        seed: of the intervals.

    Raises:
        SpeechsslError: unequal numbers, none, numbers that are not finite, or references all the same.
    """
    wanted, given = (np.asarray(values, dtype=np.float64) for values in (references, hypotheses))
    units = np.unique(np.asarray(groups), return_inverse=True)[1]
    if not wanted.size == given.size == units.size or wanted.size == 0:
        raise SpeechsslError(
            "There must be one reference, hypothesis and group for each of one frame or more, but there are "
            f"{wanted.size}, {given.size} and {units.size}."
        )
    if not (np.isfinite(wanted).all() and np.isfinite(given).all()):
        raise SpeechsslError("References and hypotheses must be finite: did the training diverge?")
    if np.ptp(wanted) == 0:
        raise SpeechsslError(
            f"The references of all {wanted.size} frames are {wanted[0]}, so there is nothing to explain."
        )
    x, y = wanted - wanted.mean(), given - wanted.mean()  # small numbers lose no digits when they are squared
    columns = (np.ones_like(x), x, y, x * x, y * y, x * y, np.square(x - y), np.abs(x - y))
    sums = np.stack([np.bincount(units, weights=column).astype(np.float64) for column in columns], axis=1)  # (U, 8)
    constant = bool(np.ptp(given) == 0)
    found = {}
    for name in FRAME_MEASURES:
        if constant and name in ("ccc", "lcc"):
            found[name] = MetricValue(0.0, wanted.size, "frames")
            continue
        low, high = bootstrap_interval(partial(_of_replicates, name, sums), len(sums), seed=seed)
        found[name] = MetricValue(float(_of_sums(name, sums.sum(axis=0))), wanted.size, "frames", low, high)
    return found


def _of_replicates(name: str, sums: Floats, counts: Floats) -> Floats:
    """A measure of units with (U, 8) sums that were drawn (R, U) times, (R,)."""
    return _of_sums(name, counts @ sums)


def _of_sums(name: str, sums: Floats) -> Floats:
    """A measure of (..., 8) sums, (...,); not finite where it is undefined."""
    count, x, y, xx, yy, xy, square, absolute = np.moveaxis(sums, -1, 0)
    x_spread, y_spread = _spread(count, x, xx), _spread(count, y, yy)
    together = xy - x * y / count
    with np.errstate(divide="ignore", invalid="ignore"):
        values: dict[str, Floats] = {
            "mse": square / count,
            "rmse": np.sqrt(square / count),
            "mae": absolute / count,
            "r2": 1.0 - square / x_spread,
            "ccc": 2.0 * together / (x_spread + y_spread + np.square(x - y) / count),
            "lcc": together / np.sqrt(x_spread * y_spread),
        }
    return values[name]


def _spread(count: Floats, total: Floats, squares: Floats) -> Floats:
    """Squared distances from the mean, 0 where they are only rounding."""
    spread = squares - np.square(total) / count
    return np.where(spread > ROUNDING * squares, spread, 0.0)
