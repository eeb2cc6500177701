"""Bootstrap intervals of a-DCF, whose trials are of three sides: targets, non-targets and spoofs.

As in `speechssl.metric.detection_interval` what is drawn is how often each cell of neighbouring scores occurs.

R replicates, C cells; sides in the order of `min_agnostic_dcf`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechssl.metric.detection import Floats, validate_side
from speechssl.metric.detection_interval import POINTS, coarse_cuts, draw_trials, fine_cuts, occurrences
from speechssl.metric.interval import CHUNK, LEVEL, REPLICATES, percentile_interval
from speechssl.metric.tandem import AgnosticCosts

SIDES = ("target_scores", "nontarget_scores", "spoof_scores")


def agnostic_dcf_interval(
    sides: Sequence[ArrayLike],
    *,
    costs: AgnosticCosts | None = None,
    units: Sequence[ArrayLike] | None = None,
    replicates: int = REPLICATES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of `min_agnostic_dcf`.

    Args:
        sides: scores of targets, non-targets and spoofs, each (N,).
        units: what is drawn together, such as a speaker, of each side (N,); None = each trial by itself.
        replicates: R.
        level: coverage, within (0, 1).
        seed: equal seeds give equal intervals.

    Raises:
        SpeechsslError: an empty side, or scores that are not finite.
    """
    costs = costs or AgnosticCosts()
    scores = [validate_side(side, name) for side, name in zip(sides, SIDES, strict=True)]
    sizes = [side.size for side in scores]
    order = np.argsort(np.concatenate(scores), kind="stable")
    kinds = np.repeat(np.arange(len(SIDES)), sizes)[order]  # (N,)
    weights = np.array(
        [costs.cost_miss * costs.p_target, costs.cost_false_alarm * costs.p_nontarget, costs.cost_spoof * costs.p_spoof]
    )
    cuts = _cuts([kinds == kind for kind in range(len(SIDES))], weights)
    cells = np.searchsorted(cuts, np.arange(kinds.size), side="right") - 1 + kinds * (cuts.size - 1)
    members = None if units is None else np.concatenate([np.asarray(side) for side in units])[order]
    counts = _draw(cells, len(SIDES) * (cuts.size - 1), members, replicates, np.random.default_rng(seed))
    below = np.cumsum(counts.reshape(replicates, len(SIDES), -1), axis=2)  # (R, 3, C)
    with np.errstate(divide="ignore", invalid="ignore"):
        rejected = np.insert(below / below[:, :, -1:], 0, 0.0, axis=2)  # (R, 3, C + 1)
    cost = _cost(rejected.transpose(1, 0, 2), weights).min(axis=1)
    return percentile_interval(cost / min(weights[0], weights[1:].sum()), level)


def _cost(rejected: Sequence[Floats] | Floats, weights: Floats) -> Floats:
    cost: Floats = weights[0] * rejected[0] + weights[1] * (1 - rejected[1]) + weights[2] * (1 - rejected[2])
    return cost


def _cuts(sides: Sequence[NDArray[np.bool_]], weights: Floats) -> NDArray[np.intp]:
    """The first trial of each cell, and the number of trials, rising."""
    number = sides[0].size
    if number <= POINTS:
        return np.arange(number + 1)
    sizes = [int(side.sum()) for side in sides]
    rejected = [np.insert(np.cumsum(side) / size, 0, 0.0) for side, size in zip(sides, sizes, strict=True)]
    spread = sum(w**2 * p * (1 - p) / n for w, p, n in zip(weights, rejected, sizes, strict=True))
    value, error = _cost(rejected, weights), np.sqrt(spread)
    fine = fine_cuts(value, error, int(np.argmin(value)), 2 * float(weights.max()) / min(sizes))
    return np.unique(np.concatenate([*coarse_cuts(sides), fine]))


def _draw(
    cells: NDArray[np.intp],
    columns: int,
    units: NDArray[np.intp] | None,
    replicates: int,
    generator: np.random.Generator,
) -> Floats:
    """How often each cell occurs in each replicate, (R, columns)."""
    if units is None:
        return draw_trials(np.bincount(cells, minlength=columns), replicates, generator)
    members = np.unique(units, return_inverse=True)[1]
    number = int(members.max()) + 1
    table, step = occurrences(members, cells, number, columns), max(1, CHUNK // number)
    equal = np.full(number, 1.0 / number)
    sizes = [min(step, replicates - first) for first in range(0, replicates, step)]
    return np.concatenate(
        [generator.multinomial(number, equal, size=size).astype(np.float64) @ table for size in sizes]
    )
