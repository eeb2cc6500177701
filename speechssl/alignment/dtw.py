"""Dynamic time warping of a query against a document, whole or as a subsequence of it, for many pairs at once.

Conventions
-----------
N query frames and M document frames, always in this order; costs are non-negative, lower = more alike. A *step pattern*
says which cells may precede cell (i, j) and how often its cost then counts, under dtw-python's names:

* ``asymmetric``: (i-1, j), (i-1, j-1), (i-1, j-2), each once, so every query frame counts once. The distance is divided
  by N.
* ``symmetric1``: (i-1, j-1), (i, j-1), (i-1, j), each once. No division: the paths of one pair differ in length.
* ``symmetric2``: the same, the diagonal step twice (Sakoe and Chiba 1978). The distance is divided by N + M.

With open ends the path may begin and end at any document frame, which is the search for a subsequence; as in dtw-python
this needs a pattern whose normalisation is N, so ``asymmetric``. There a query may be longer than the document: its
frames then share document frames. Without open ends ``asymmetric`` has no path where M > 2N - 1, which is refused.

Two implementations of one definition: a compiled kernel on the processor, row operations of torch on any other device.

Reference: Giorgino 2009, "Computing and visualizing dynamic time warping alignments in R: the dtw package", Journal of
Statistical Software 31(7), sec. 3, and dtw-python (`dtw/stepPattern.py`, `dtw/dtw.py`); Sakoe and Chiba 1978, table I.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speechssl.alignment import kernel
from speechssl.errors import ConfigError, SpeechsslError

StepPattern = Literal["asymmetric", "symmetric1", "symmetric2"]
STEP_PATTERNS: tuple[StepPattern, ...] = get_args(StepPattern)
"""In the order of the kernel's constants."""

Distance = Literal["cosine", "cosine_exp", "angular", "euclidean"]
DISTANCES: tuple[Distance, ...] = get_args(Distance)

Backend = Literal["auto", "kernel", "torch"]


@dataclass(frozen=True)
class WarpSettings:
    """How two sequences are warped onto each other."""

    step_pattern: StepPattern
    open_ends: bool = False
    """Whether the path may begin and end at any document frame."""
    minmax: bool = False
    """Whether the costs of each query frame are first mapped to [0, 1] over the document, by S3PRL's `minmax_norm`:
    (d - min) / max(max - min, 1e-9). A document of a single frame then matches everything perfectly, there as here."""

    def __post_init__(self) -> None:
        if self.step_pattern not in STEP_PATTERNS:
            raise ConfigError(f"`step_pattern` must be one of {STEP_PATTERNS}, but is {self.step_pattern!r}.")
        if self.open_ends and self.step_pattern != "asymmetric":
            raise ConfigError(
                f"`open_ends` needs the 'asymmetric' step pattern, but it is {self.step_pattern!r}: "
                "the others can't be normalised by the query's length alone."
            )

    @property
    def how(self) -> kernel.How:
        """The same as the kernel takes it."""
        return STEP_PATTERNS.index(self.step_pattern), self.open_ends, self.minmax


CLOSED = WarpSettings("symmetric2")
"""Whole against whole, Sakoe and Chiba's symmetric pattern (dtw-python's default)."""


def prepare_frames(features: Tensor, *, distance: Distance) -> Tensor:
    """Frames as `prepared_distances` takes them: of unit length for the angle-based distances.

    Args:
        features: (..., T, D); half precision becomes float32. A frame of zeros stays one, at cosine 0 from all.
    """
    if distance not in DISTANCES:
        raise ConfigError(f"`distance` must be one of {DISTANCES}, but is {distance!r}.")
    frames = features if features.dtype == torch.float64 else features.float()
    return frames if distance == "euclidean" else torch.nn.functional.normalize(frames, dim=-1, eps=1e-30)


def prepared_distances(query: Tensor, document: Tensor, *, distance: Distance, out: Tensor | None = None) -> Tensor:
    """Distances between prepared frames, of several layers at once where there are any.

    Args:
        query: (..., N, D).
        document: (..., M, D).
        distance: 'cosine' is 1 - cos, 'cosine_exp' exp(1 - cos) - 1 (S3PRL `quesst14_dtw/dtw_utils.py`), 'angular'
            arccos(cos) / pi (ABX), 'euclidean' the length of the difference.
        out: (..., N, M) memory to use again; not used by 'euclidean'.

    Returns:
        (..., N, M).
    """
    if distance == "euclidean":  # not by way of products: these lose all digits between frames that are nearly equal
        return torch.cdist(query, document, compute_mode="donot_use_mm_for_euclid_dist")
    cosine = torch.matmul(query, document.mT, out=out).clamp_(-1.0, 1.0)  # (..., N, M)
    if distance == "angular":
        return cosine.arccos_().div_(math.pi)
    cosine.neg_().add_(1.0)
    return cosine.expm1_() if distance == "cosine_exp" else cosine


def frame_distances(query: Tensor, document: Tensor, *, distance: Distance) -> Tensor:
    """Distances between the frames (N, D) of a query and (M, D) of a document, (N, M); see `prepared_distances`."""
    first, second = (prepare_frames(x, distance=distance) for x in (query, document))
    return prepared_distances(first, second, distance=distance)


def warp_distances(
    costs: Tensor,
    query_lengths: Tensor | None = None,
    document_lengths: Tensor | None = None,
    *,
    settings: WarpSettings,
    backend: Backend = "auto",
) -> Tensor:
    """The distances of B pairs from their frame-to-frame costs.

    Args:
        costs: (B, N, M); what lies beyond a pair's lengths is never read.
        query_lengths: (B,) valid rows; None = all.
        document_lengths: (B,) valid columns; None = all.
        settings: the step pattern and its options.
        backend: 'auto' is the kernel on the processor and torch elsewhere.

    Returns:
        (B,) float64 on the processor, normalised as the step pattern says.

    Raises:
        SpeechsslError: costs that are not finite, lengths out of range, or a pair without a path.
    """
    if costs.ndim != 3:
        raise SpeechsslError(f"`costs` must have shape (B, N, M), but has {tuple(costs.shape)}.")
    batch, rows, columns = costs.shape
    queries = _lengths(query_lengths, "query_lengths", batch, rows)
    documents = _lengths(document_lengths, "document_lengths", batch, columns)
    device = costs.device
    valid = torch.arange(rows, device=device)[:, None] < queries.to(device)[:, None, None]  # (B, N, 1)
    valid = valid & (torch.arange(columns, device=device) < documents.to(device)[:, None, None])  # (B, N, M)
    bad = (~torch.isfinite(costs) & valid).nonzero()
    if len(bad):
        place = bad[0].tolist()
        raise SpeechsslError(
            f"`costs` must be finite, but costs{place} = {float(costs[tuple(place)])}: check the features."
        )
    first_rows = torch.arange(batch) * rows
    pairs = torch.stack((first_rows, queries, torch.zeros_like(queries), documents), dim=1)  # (B, 4)
    return warp_block(costs.reshape(batch * rows, columns), pairs, settings=settings, backend=backend)


def warp_block(
    block: Tensor,
    pairs: Tensor,
    *,
    settings: WarpSettings,
    backend: Backend = "auto",
    pool: ThreadPoolExecutor | None = None,
) -> Tensor:
    """The distances of pairs whose costs are rectangles of one block; `warp_distances` is the checked way to call it.

    Args:
        block: (R, C) finite costs.
        pairs: (P, 4) int64 on the processor: first row, rows, first column, columns.
        pool: threads to spread the kernel over; None = this thread. The kernel does not hold the interpreter's lock.

    Returns:
        (P,) float64 on the processor.
    """
    use_kernel = backend == "kernel" or (backend == "auto" and block.device.type == "cpu")
    found = _kernel_pairs(block, pairs, settings, pool) if use_kernel else _torch_pairs(block, pairs, settings).cpu()
    if not torch.isfinite(found).all():
        bad = int((~torch.isfinite(found)).nonzero()[0])
        raise SpeechsslError(
            f"Pair {bad} has no path: {int(pairs[bad, 1])} query frames can't reach the last of {int(pairs[bad, 3])} "
            "document frames in 'asymmetric' steps. Take a symmetric pattern, or open ends."
        )
    if settings.step_pattern == "symmetric1":
        return found
    return found / (pairs[:, 1] if settings.step_pattern == "asymmetric" else pairs[:, 1] + pairs[:, 3])


def warp_path(costs: Tensor, *, settings: WarpSettings) -> Tensor:
    """The best path of one pair; among equals the step that the pattern names first, looking back from the end.

    Args:
        costs: (N, M) finite.

    Returns:
        (L, 2) int64: query frame and document frame of each step, ascending.
    """
    warp_distances(costs[None], settings=settings)  # refuses what has no path
    values = costs.detach().cpu().double().contiguous().numpy()
    table, used = kernel.accumulate(values, settings.how)
    i, j = len(table) - 1, table.shape[1] - 1
    if settings.open_ends:
        j = int(table[i].argmin())
    path = [(i, j)]
    while i > 0 or (j > 0 and not settings.open_ends):
        i, j = _predecessor(table, used[i, j], i, j, settings.step_pattern)
        path.append((i, j))
    return torch.tensor(path[::-1])


def _predecessor(table: NDArray[np.float64], cost: float, i: int, j: int, pattern: StepPattern) -> tuple[int, int]:
    diagonal = 2.0 if pattern == "symmetric2" else 1.0
    steps = {(1, 1): diagonal, (0, 1): 1.0, (1, 0): 1.0}
    if pattern == "asymmetric":
        steps = {(1, 0): 1.0, (1, 1): 1.0, (1, 2): 1.0}
    reached = {(i - a, j - b): table[i - a, j - b] + w * cost for (a, b), w in steps.items() if i >= a and j >= b}
    return min(reached, key=lambda cell: reached[cell])


def _kernel_pairs(block: Tensor, pairs: Tensor, settings: WarpSettings, pool: ThreadPoolExecutor | None) -> Tensor:
    costs, places = block.detach().cpu().contiguous().numpy(), np.ascontiguousarray(pairs.numpy())
    found = np.empty(len(places))
    workers = 1 if pool is None else min(len(places), torch.get_num_threads())
    shares = [np.ascontiguousarray(places[w::workers]) for w in range(workers)]
    results = [np.empty(len(share)) for share in shares]

    def work(share: NDArray[np.int64], result: NDArray[np.float64]) -> None:
        kernel.warp_pairs(costs, share, settings.how, result)

    if pool is None:
        work(shares[0], results[0])
    else:
        list(pool.map(work, shares, results))
    for w, result in enumerate(results):
        found[w::workers] = result
    return torch.from_numpy(found)


def _torch_pairs(block: Tensor, pairs: Tensor, settings: WarpSettings) -> Tensor:
    """The same by operations on whole rows of all pairs at once, for devices that the kernel does not run on."""
    row, rows, column, columns = pairs.to(block.device).unbind(1)  # (P,) each
    i = torch.arange(int(rows.max()), device=block.device).minimum(rows[:, None] - 1)  # (P, N)
    j = torch.arange(int(columns.max()), device=block.device)
    # Columns beyond a pair's own repeat its last one, which changes neither minimum nor maximum nor what lies left.
    columns_read = column[:, None] + j.minimum(columns[:, None] - 1)  # (P, M)
    inside = j < columns[:, None]  # (P, M)
    found = torch.empty(len(pairs), dtype=torch.float64, device=block.device)
    current = torch.empty(0, device=block.device)
    for n in range(i.shape[1]):
        costs = block[(row + i[:, n])[:, None], columns_read].double()  # (P, M)
        if settings.minmax:
            low, high = costs.aminmax(dim=1, keepdim=True)
            costs = (costs - low) / (high - low).clamp_min(1e-9)
        current = _begin(costs, settings) if n == 0 else _advance(current, costs, settings.step_pattern)
        if settings.open_ends:
            ends = current.masked_fill(~inside, torch.inf).amin(dim=1)
        else:
            ends = current.gather(1, (columns - 1)[:, None])[:, 0]
        found = torch.where(rows == n + 1, ends, found)
    return found


def _begin(costs: Tensor, settings: WarpSettings) -> Tensor:
    if settings.open_ends:
        return costs
    if settings.step_pattern == "asymmetric":
        return costs.masked_fill(torch.arange(costs.shape[1], device=costs.device) > 0, torch.inf)
    return costs.cumsum(dim=1)


def _advance(previous: Tensor, costs: Tensor, pattern: StepPattern) -> Tensor:
    """The next row of accumulated costs (P, M)."""
    before = torch.nn.functional.pad(previous, (kernel.BEFORE, 0), value=torch.inf)  # (P, 2 + M)
    one, two = before[:, 1:-1], before[:, :-2]
    if pattern == "asymmetric":
        return previous.minimum(one).minimum(two) + costs
    diagonal = 2.0 if pattern == "symmetric2" else 1.0
    entered = (previous + costs).minimum(one + diagonal * costs)
    # The step within the row, g[j] = min(entered[j], g[j - 1] + cost[j]), is a running minimum once the sum of the
    # costs up to j is taken from both sides; in float64 these sums lose nothing that matters.
    total = costs.cumsum(dim=1)
    return (entered - total).cummin(dim=1).values + total


def _lengths(lengths: Tensor | None, name: str, batch: int, most: int) -> Tensor:
    if lengths is None:
        return torch.full((batch,), most, dtype=torch.int64)
    lengths = lengths.cpu().long()
    if lengths.shape != (batch,):
        raise SpeechsslError(f"`{name}` must have shape ({batch},), but has {tuple(lengths.shape)}.")
    for b, length in enumerate(lengths.tolist()):
        if not 1 <= length <= most:
            raise SpeechsslError(f"`{name}` must lie within [1, {most}], but {name}[{b}] = {length}.")
    return lengths
