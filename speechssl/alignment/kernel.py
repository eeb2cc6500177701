"""The recursion of dynamic time warping, compiled by numba: one pass over a pair's costs, two rows of memory.

Conventions: R rows (query frames) and C columns (document frames) of a block of frame-to-frame costs; a pair is a
rectangle of the block, so that one block holds many queries and documents side by side without any padding. The step
patterns are numbered as in `speechssl.alignment.dtw.STEP_PATTERNS`.

Every function releases the interpreter's lock: threads may share a block.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Integers = NDArray[np.int64]
How = tuple[int, bool, bool]
"""The step pattern; whether the path may begin and end at any column; whether each row is first mapped to [0, 1]."""

ASYMMETRIC, SYMMETRIC1, SYMMETRIC2 = 0, 1, 2
BEFORE = 2
"""Cells left of the first column that are never reachable: the asymmetric pattern skips one frame."""


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[misc]  # numba has no types
def _advance(previous: Floats, current: Floats, costs: Floats, affine: tuple[float, float], steps: int) -> None:
    """One row of the recursion: `current` from `previous`, both (BEFORE + M,), and the row's M costs."""
    low, scale = affine
    if steps == ASYMMETRIC:
        # All three predecessors lie in the row before, so the compiler can do many columns at once.
        for j in range(costs.size):
            best = min(previous[j + 2], previous[j + 1], previous[j])
            current[j + 2] = best + (costs[j] - low) * scale
        return
    diagonal = 2.0 if steps == SYMMETRIC2 else 1.0
    left = np.inf
    for j in range(costs.size):
        cost = (costs[j] - low) * scale
        left = min(previous[j + 1] + diagonal * cost, min(left, previous[j + 2]) + cost)
        current[j + 2] = left


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[misc]  # numba has no types
def _begin(current: Floats, costs: Floats, affine: tuple[float, float], steps: int, open_ends: bool) -> None:
    """The first row: any column may begin where the ends are open, else only the first."""
    low, scale = affine
    total = 0.0
    for j in range(costs.size):
        cost = (costs[j] - low) * scale
        total += cost
        if open_ends or j == 0:
            current[j + 2] = cost
        else:
            current[j + 2] = np.inf if steps == ASYMMETRIC else total


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[misc]  # numba has no types
def _affine(costs: Floats, minmax: bool) -> tuple[float, float]:
    """What to subtract from the row's costs and to multiply them by."""
    if not minmax:
        return 0.0, 1.0
    low = costs[0]
    high = costs[0]
    for cost in costs:
        low = min(low, cost)
        high = max(high, cost)
    return low, 1.0 / max(high - low, 1e-9)


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[misc]  # numba has no types
def warp_pairs(block: Floats, pairs: Integers, how: How, distances: NDArray[np.float64]) -> None:
    """Fills `distances` with the accumulated cost of the best path of each pair, not normalised by any length.

    Args:
        block: (R, C) costs.
        pairs: (P, 4) first row, number of rows, first column, number of columns.
        how: see `How`.
        distances: (P,); inf where no path exists.
    """
    steps, open_ends, minmax = how
    widest = 0
    for p in range(pairs.shape[0]):
        widest = max(widest, pairs[p, 3])
    previous = np.full(BEFORE + widest, np.inf)
    current = np.full(BEFORE + widest, np.inf)
    for p in range(pairs.shape[0]):
        row, rows, column, columns = pairs[p, 0], pairs[p, 1], pairs[p, 2], pairs[p, 3]
        for i in range(rows):
            costs = block[row + i, column : column + columns]
            affine = _affine(costs, minmax)
            if i == 0:
                _begin(current, costs, affine, steps, open_ends)
            else:
                _advance(previous, current, costs, affine, steps)
            previous, current = current, previous
        distances[p] = previous[BEFORE : BEFORE + columns].min() if open_ends else previous[BEFORE + columns - 1]


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[misc]  # numba has no types
def accumulate(costs: Floats, how: How) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The accumulated costs (N, M) of one pair with costs (N, M), and the costs as the recursion used them (N, M)."""
    steps, open_ends, minmax = how
    rows, columns = costs.shape
    table = np.full((rows, BEFORE + columns), np.inf)
    used = np.empty((rows, columns))
    for i in range(rows):
        affine = _affine(costs[i], minmax)
        used[i] = (costs[i] - affine[0]) * affine[1]
        if i == 0:
            _begin(table[i], costs[i], affine, steps, open_ends)
        else:
            _advance(table[i - 1], table[i], costs[i], affine, steps)
    return table[:, BEFORE:].copy(), used
