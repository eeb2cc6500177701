"""The mean cost along the warping path of many pairs at once, as ABX compares two stretches of speech.

The steps are those of 'symmetric1' in `speechssl.alignment.dtw`, each cell once; the sum of the costs on the best path
is divided by the number of its cells. Where several steps cost the same, looking back from the end, the diagonal one is
taken before (i, j - 1), and that before (i - 1, j): the number of cells depends on it. Sums are in float64, so that
sums of equal costs are equal; the implementations named below sum in float32.

N row frames, M column frames of a pair; its costs are a rectangle of a block, so nothing is padded. The kernels release
the interpreter's lock.

Reference: `_dtw`
of libri-light (`eval/ABX_src/dtw.pyx`) and torchdtw (`csrc/dtw.cpp`), which fastabx calls; Schatz et al. 2013,
"Evaluating speech features with the minimal-pair ABX task", for the distance.
"""

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.floating]
Integers = NDArray[np.int64]


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[misc]  # numba has no types
def _mean(
    block: Floats, rows: tuple[int, int], columns: tuple[int, int], memory: tuple[Floats, Integers, Integers]
) -> tuple[float, float]:
    """The mean cost of one pair, and that of the pair with rows and columns exchanged.

    Both have the same least sum; where steps cost the same the two paths may differ in length, so two are counted.

    Args:
        block: (R, C) costs.
        rows: first row and their number.
        columns: first column and their number.
        memory: (>= M,) each for the last row: sums, cells of the path, and cells of the exchanged pair's path.
    """
    total, cells, back = memory
    first_row, n = rows
    first, m = columns
    for i in range(n):
        row = first_row + i
        diagonal, diagonal_cells, diagonal_back = 0.0, 0, 0  # of (i - 1, j - 1)
        left, left_cells, left_back = 0.0, 0, 0
        for j in range(m):
            up, up_cells, up_back = total[j], cells[j], back[j]
            if i == 0 and j == 0:
                best, count, other = 0.0, 0, 0
            elif i == 0:
                best, count, other = left, left_cells, left_back
            elif j == 0:
                best, count, other = up, up_cells, up_back
            elif diagonal <= left and diagonal <= up:
                best, count, other = diagonal, diagonal_cells, diagonal_back
            elif left < up:
                best, count, other = left, left_cells, left_back
            elif up < left:
                best, count, other = up, up_cells, up_back
            else:
                best, count, other = left, left_cells, up_back
            left = best + block[row, first + j]
            left_cells, left_back = count + 1, other + 1
            total[j], cells[j], back[j] = left, left_cells, left_back
            diagonal, diagonal_cells, diagonal_back = up, up_cells, up_back
    return total[m - 1] / cells[m - 1], total[m - 1] / back[m - 1]


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[misc]  # numba has no types
def _rectangle(block: Floats, rows: Integers, columns: Integers, found: NDArray[np.float64]) -> None:
    widest = columns[:, 1].max()
    memory = np.empty(widest), np.empty(widest, np.int64), np.empty(widest, np.int64)
    for p in range(rows.shape[0]):
        row = rows[p, 0], rows[p, 1]
        for q in range(columns.shape[0]):
            found[p, q] = _mean(block, row, (columns[q, 0], columns[q, 1]), memory)[0]


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[misc]  # numba has no types
def _triangle(block: Floats, spans: Integers, rows: tuple[int, int], found: NDArray[np.float64]) -> None:
    first, end = rows
    widest = spans[:, 1].max()
    memory = np.empty(widest), np.empty(widest, np.int64), np.empty(widest, np.int64)
    for p in range(first, end):
        row = spans[p, 0] - spans[first, 0], spans[p, 1]
        for q in range(p, spans.shape[0]):
            column = spans[q, 0] - spans[first, 0], spans[q, 1]
            found[p, q], found[q, p] = _mean(block, row, column, memory)


def path_means(block: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The mean cost on the path of each row sequence against each column sequence.

    Args:
        block: (R, C) finite costs on the processor.
        rows: (P, 2) int64, first row and number of rows of each sequence, at least one.
        columns: (Q, 2) int64 likewise.

    Returns:
        (P, Q) float64.
    """
    found = np.empty((len(rows), len(columns)))
    _rectangle(block.numpy(), rows.numpy(), columns.numpy(), found)
    return torch.from_numpy(found)


def triangle_means(block: Tensor, spans: Tensor, found: Tensor, rows: range) -> None:
    """The same among sequences that lie side by side, each pair once: fills some rows of (P, P), and their mirror.

    Args:
        block: (R, C) costs of the frames of sequences `rows` with those of sequences `rows.start` to the last.
        spans: (P, 2) int64, first frame and number of frames of each sequence, one after the other.
        found: (P, P) float64; [p, q] and [q, p] for p in `rows`, q >= p are set.
        rows: which sequences are rows.
    """
    _triangle(block.numpy(), spans.numpy(), (rows.start, rows.stop), found.numpy())
