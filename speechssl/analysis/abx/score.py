"""The ABX error rate of features: how often a token of one phone is nearer to another phone than to its own.

The error of a cell is the share of its triples (A, B, X), A and X different tokens, in which d(A, X) > d(B, X), where
ties count half. Cells are averaged over contexts and speakers of X, these means over the speakers of A and B, and those
over the ordered pairs of phones: 0 is perfect, 0.5 is chance.

d is the mean distance of frames along their warping path (`speechssl.alignment.path_mean`). Distances of frames:

* angular: arccos(cos) / pi. A frame of zeros is at 1/2 from all; in libri-light it is at 1 from all others.
* euclidean.
* kl: half the sum of both divergences of two distributions, with 1e-6 added inside the logarithms.
* identical: 0 where two frames of codes are equal, else 1.

A table of distances holds all cells of a family (`task`); within speakers each pair of tokens is compared once. Tables
are filled block by block, so that no more than `BLOCK` cells of frames are held, and nothing is padded. A cell's
triples are counted by bisection in the sorted distances of its A, not one by one.

Reference: libri-light `eval/eval_ABX.py` (order of the means), fastabx `src/fastabx/distance.py`. Papers: see `task`.
"""

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from speechssl.alignment.dtw import prepare_frames, prepared_distances
from speechssl.alignment.path_mean import path_means, triangle_means
from speechssl.analysis.abx.task import AbxTask, Family
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.metric.interval import bootstrap_interval
from speechssl.progress import Advance

AbxDistance = Literal["angular", "euclidean", "kl", "identical"]
DISTANCES: tuple[AbxDistance, ...] = get_args(AbxDistance)
BLOCK = 1 << 20
"""Cells of frames that are held at once, or those of a row token with all columns: the processor's cache holds them."""
LARGE = 1 << 22
"""Cells of frames from which on a table is shared by the threads."""
TOGETHER = 32
"""Smaller tables that a thread fills one after the other."""
AHEAD = 8
"""Parts of a table's rows whose distances are held at once."""
SQUARE = 4096
"""Most tokens of a table that is filled by comparing each pair once: 128 MB."""
EPSILON = 1e-6

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class AbxScore:
    """What an ABX measure found."""

    error: float
    """0 = perfect, 0.5 = chance."""
    low: float
    """Where the 95 % interval begins, by the bootstrap over speakers of A and B; NaN with fewer than two."""
    high: float
    cells: int
    triples: int
    items: int
    """Tokens that were given."""
    dropped: int
    """Of these, those that hold no frame."""
    by_pair: Mapping[tuple[str, str], float]
    """The error of each ordered pair of phones, that of A and X first."""


def abx_error(
    task: AbxTask,
    features: Mapping[str, Tensor],
    *,
    distance: AbxDistance = "angular",
    seed: int = 0,
    advance: Advance | None = None,
) -> AbxScore:
    """The error rate of some features.

    Args:
        task: from `plan_abx`.
        features: file -> (T, D), with the frames that the task was planned with; read once each, and only the frames
            of its tokens are kept. (T, G) codes for 'identical'.
        distance: of frames, see above.
        seed: of the interval.
        advance: is told of each family that is done.

    Raises:
        SpeechsslError: features that are not finite, too few frames, or no distributions where 'kl' is asked for.
    """
    if distance not in DISTANCES:
        raise ConfigError(f"`distance` must be one of {DISTANCES}, but is {distance!r}.")
    frames = _Frames(_gathered(task, features, distance), distance)
    with _threads() as pool:
        counts = _counts(task, frames, pool, advance)
    return _averaged(task, counts, seed)


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch has, each of which computes alone: most products are too small to be shared."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count) as pool:
            yield pool
    finally:
        torch.set_num_threads(count)


@dataclass(frozen=True)
class _Frames:
    """All frames that are needed, prepared for their distance, (N, D)."""

    rows: Tensor
    distance: AbxDistance

    def block(self, first: Tensor, second: Tensor) -> Tensor:
        """Distances of frames taken from these, (R, D) and (C, D) -> (R, C)."""
        if self.distance == "identical":
            return (first[:, None] != second[None]).any(dim=2).float()
        if self.distance != "kl":
            return prepared_distances(first, second, distance=self.distance)
        half = first.size(1) // 2  # distributions, and their logarithms
        crossed = torch.cat((second[:, half:], second[:, :half]), dim=1)
        own, other = ((x[:, :half] * x[:, half:]).sum(dim=1) for x in (first, second))
        return torch.addmm(own[:, None] + other, first, crossed.mT, alpha=-1.0).mul_(0.5)


def _gathered(task: AbxTask, features: Mapping[str, Tensor], distance: AbxDistance) -> Tensor:
    parts = []
    for file, needed in task.frames.items():
        own = features[file]
        if own.dim() != 2 or len(own) <= needed[-1]:
            raise SpeechsslError(
                f"The features of '{file}' must be (frames, width) with more than {needed[-1]} frames, "
                f"but have shape {tuple(own.shape)}: plan the task with the same features."
            )
        part = own[torch.from_numpy(needed).to(own.device)].detach().cpu()
        if not torch.isfinite(part).all():
            raise SpeechsslError(f"The features of '{file}' are not finite: has the model diverged?")
        parts.append(part)
    rows = torch.cat(parts)
    if distance == "identical":
        return rows
    if distance == "kl":
        rows = rows.double()  # differences of nearly equal logarithms
        if rows.min() < 0 or (rows.sum(dim=1) - 1.0).abs().max() > 1e-3:
            raise SpeechsslError("'kl' compares distributions: frames must be >= 0 and sum to 1; take a softmax first.")
        return torch.cat((rows, (rows + EPSILON).log()), dim=1)
    return prepare_frames(rows, distance=distance)


def _counts(
    task: AbxTask, frames: _Frames, pool: ThreadPoolExecutor, advance: Advance | None
) -> list[tuple[Floats, Floats]]:
    """Errors and triples of the cells of each family, (G, P) each."""
    found = [_zeros(family) for family in task.families]
    sizes = [int(task.lengths[f.rows].sum() * task.lengths[f.columns].sum()) for f in task.families]
    large = [number for number, size in enumerate(sizes) if size > LARGE]
    small = [number for number, size in enumerate(sizes) if size <= LARGE]
    for number in large:  # each spread over the threads
        _count(task, task.families[number], frames, found[number], pool)
        if advance is not None:
            advance()

    def work(numbers: list[int]) -> int:
        for number in numbers:
            _count(task, task.families[number], frames, found[number], None)
        return len(numbers)

    for done in pool.map(work, [small[first : first + TOGETHER] for first in range(0, len(small), TOGETHER)]):
        if advance is not None:
            advance(done)
    return found


def _zeros(family: Family) -> tuple[Floats, Floats]:
    shape = len(family.phone_of_group), len(family.phones)
    return np.zeros(shape), np.zeros(shape)


def _count(
    task: AbxTask, family: Family, frames: _Frames, counts: tuple[Floats, Floats], pool: ThreadPoolExecutor | None
) -> None:
    """Adds up errors and triples of one family, by parts of its rows; `pool` takes several at once."""
    columns, spans = _side(task, family.columns, frames)
    parts = _parts(task.lengths[family.rows], BLOCK // len(columns))
    cells = (family.group_of_row, family.phone_of_group, family.bounds)
    run = map if pool is None else pool.map
    if family.square and len(family.rows) <= SQUARE:
        table = torch.empty(len(spans), len(spans), dtype=torch.float64)

        def fill(part: range) -> None:
            begin, end = int(spans[part.start, 0]), int(spans[part.stop - 1].sum())
            triangle_means(frames.block(columns[begin:end], columns[begin:]), spans, table, part)

        list(run(fill, parts))
        _errors(table.numpy(), 0, family.square, cells, counts)
        return

    def compare(part: range) -> Tensor:
        rows, row_spans = _side(task, family.rows[part.start : part.stop], frames)
        return path_means(frames.block(rows, columns), row_spans, spans)

    for first in range(0, len(parts), AHEAD):
        some = parts[first : first + AHEAD]
        for part, found in zip(some, run(compare, some), strict=True):
            _errors(found.numpy(), part.start, family.square, cells, counts)


def _side(task: AbxTask, tokens: Integers, frames: _Frames) -> tuple[Tensor, Tensor]:
    """The frames of tokens end to end (R, D), and where each of them lies there, (tokens, 2)."""
    lengths = task.lengths[tokens]
    begins = lengths.cumsum() - lengths
    index = np.repeat(task.starts[tokens] - begins, lengths) + np.arange(lengths.sum())
    spans = np.stack((begins, lengths), axis=1)
    return frames.rows.index_select(0, torch.from_numpy(index)), torch.from_numpy(spans)


def _parts(sizes: Integers, most: int) -> list[range]:
    """Neighbours of at most `most` frames, or one token."""
    parts, begin, held = [], 0, 0
    for number, size in enumerate(sizes.tolist()):
        if number > begin and held + size > most:
            parts.append(range(begin, number))
            begin, held = number, 0
        held += size
    return [*parts, range(begin, len(sizes))]


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[misc]  # numba has no types
def _below(ascending: Floats, count: int, value: float, equal: bool) -> int:
    """How many of the first `count` are less than a value, or equal to it too."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] < value or (equal and ascending[middle] == value):
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[misc]  # numba has no types
def _errors(
    found: Floats, first: int, square: bool, cells: tuple[Integers, Integers, Integers], counts: tuple[Floats, Floats]
) -> None:
    """Adds the errors and triples of X `first` to `first + m - 1`, from their distances (m, n) of all columns."""
    errors, triples = counts
    group_of_row, phone_of_group, bounds = cells
    for p in range(found.shape[0]):
        group = group_of_row[first + p]
        own = phone_of_group[group]
        begin, end = bounds[own], bounds[own + 1]
        nearest = found[p, begin:end].copy()  # d(A, X)
        count = end - begin
        if square:
            nearest[first + p - begin] = np.inf  # X itself
            count -= 1
        if count == 0:
            continue
        nearest.sort()
        for phone in range(bounds.size - 1):
            if phone == own:
                continue
            wrong = 0.0
            for q in range(bounds[phone], bounds[phone + 1]):
                nearer = _below(nearest, count, found[p, q], False)
                wrong += count - 0.5 * (nearer + _below(nearest, count, found[p, q], True))
            errors[group, phone] += wrong
            triples[group, phone] += count * (bounds[phone + 1] - bounds[phone])


def _averaged(task: AbxTask, counts: list[tuple[Floats, Floats]], seed: int) -> AbxScore:
    keys, rates, total = [], [], 0.0
    speakers, phones = len(task.speakers), len(task.phones)
    for family, (errors, triples) in zip(task.families, counts, strict=True):
        group, place = np.nonzero(triples)
        first, second = family.phones[family.phone_of_group[group]], family.phones[place]
        keys.append((first * phones + second) * speakers + family.speaker)
        rates.append(errors[group, place] / triples[group, place])
        total += triples.sum()
    cell, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    every = np.concatenate(rates)
    of_speaker = np.bincount(inverse, weights=every) / np.bincount(inverse)  # over contexts, and speakers of X
    pair, row = np.unique(cell // speakers, return_inverse=True)
    of_pair = np.bincount(row, weights=of_speaker) / np.bincount(row)
    low, high = _interval(cell % speakers, row, of_speaker, seed)
    names = {(task.phones[k // phones], task.phones[k % phones]): float(v) for k, v in zip(pair, of_pair, strict=True)}
    return AbxScore(
        float(of_pair.mean()), low, high, len(every), round(total), task.items, task.dropped, names
    )  # fmt: skip


def _interval(speaker: Integers, pair: Integers, values: Floats, seed: int) -> tuple[float, float]:
    """The interval over speakers; pairs of phones that no speaker drawn has said are left out of a replicate."""
    heard, unit = np.unique(speaker, return_inverse=True)
    if len(heard) < 2:
        return math.nan, math.nan
    table = np.zeros((2, len(heard), int(pair.max()) + 1))
    table[0, unit, pair] = values
    table[1, unit, pair] = 1.0

    def statistic(counts: Floats) -> Floats:
        top, bottom = counts @ table[0], counts @ table[1]  # (R, pairs)
        means = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
        rates: Floats = means.sum(axis=1) / (bottom > 0).sum(axis=1)
        return rates

    return bootstrap_interval(statistic, len(heard), seed=seed)
