"""A pool of reference frames that are searched by cosine.

Shapes: T source frames, S of them at once, N reference frames, R of them at once, D width, K neighbours.
Reference: https://github.com/bshall/knn-vc (matcher.py: cosine distance), which holds all T x N distances at once.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from speechssl.errors import SpeechsslError
from speechssl.neighbours.blocks import (
    GROUP,
    Block,
    Nearest,
    Query,
    by_row,
    crowd,
    find_pairs,
    make_block,
    product_type,
)
from speechssl.neighbours.exclusion import Run, hide, row_runs

Backend = Literal["torch", "faiss"]
MEMORY_MB = 256
LARGEST = {"cpu": (2048, 8192)}
"""Source and reference frames at once, at most: more are not faster."""
LARGEST_ELSEWHERE = (16_384, 65_536)
FEWEST = (32, 512)
WHOLE = 8
"""This share of the source frames at once is compared with the whole block, where it must be."""


class ReferencePool:
    """Frames that are normalised once and searched many times; every search is exact.

    Beside the frames themselves a pool keeps a rounded copy of them where `prepare` is set: half their size in float32
    on processors that multiply bfloat16 fast, else their size.
    """

    @torch.no_grad()
    def __init__(
        self, frames: Tensor, *, memory_mb: int = MEMORY_MB, prepare: bool = True, backend: Backend = "torch"
    ) -> None:
        """
        Args:
            frames: (N, D) of any floating type, on the device that is to search; kept, not copied.
            memory_mb: MB of 10^6 bytes that a search may take beside the pool, the source and the result.
            prepare: False = what a search needs of the frames is made and dropped block by block, for one search alone.
            backend: 'faiss' searches with faiss's exact index on the CPU, and keeps a copy in float32.

        Raises:
            SpeechsslError: frames that are none or not finite, too little memory, or faiss is not installed.
        """
        if frames.dim() != 2 or not len(frames):
            raise SpeechsslError(f"Reference frames must be (N, D) with N > 0, but are {tuple(frames.shape)}.")
        self.frames = frames
        self.dtype = product_type(frames.device)
        self._memory = memory_mb * 800_000  # bytes; the rest is for what libraries take
        self._spare = memory_mb * 100_000  # of frames that are compared one by one
        self.columns = _columns(frames, self.dtype.itemsize, self._memory)
        self._lengths, self._centre = self._measure()
        self._blocks: list[Block] | None = None
        self._index = None
        if backend == "faiss":
            from speechssl.neighbours.faiss_index import FaissIndex

            self._index = FaissIndex(self._directions(b, e) for b, e in _steps(len(frames), self.columns))
        elif prepare:
            self._blocks = list(self._make_blocks())

    def __len__(self) -> int:
        return len(self.frames)

    @torch.no_grad()
    def search(self, source: Tensor, *, k: int, exclude: Tensor | None = None) -> Tensor:
        """Finds the k frames with the highest cosine similarity for each source frame.

        Args:
            source: (T, D) of any floating type.
            k: at most N less what is excluded.
            exclude: (N,) bool, True = found by none; or (T, 2) int64, for each source frame a stretch that it does not
                find (its own utterance), its first frame and the one after its last.

        Returns:
            (T, k) int64 numbers of reference frames, best first; ties in any order.

        Raises:
            SpeechsslError: fewer than k frames to choose from, another width, or source frames that are not finite.
        """
        self._check(source, k, exclude)
        rows = _rows(self.columns, k, self.frames, self.dtype.itemsize, self._memory)
        if self._index is not None:
            return self._index.search(source, k=k, exclude=exclude, rows=rows).to(source.device)
        found = torch.empty(len(source), k, dtype=torch.int64, device=source.device)
        for begin, end in _steps(len(source), rows):
            hidden = exclude[begin:end] if exclude is not None and exclude.dim() == 2 else exclude
            found[begin:end] = self._search(source[begin:end].to(self.frames.device), k, hidden)
        return found

    def _search(self, source: Tensor, k: int, exclude: Tensor | None) -> Tensor:
        query = Query.of(source, self._centre, self.dtype)
        best = Nearest(
            torch.full((len(source), k), float("-inf"), device=source.device),
            torch.full((len(source), k), -1, device=source.device),
        )
        runs: list[Run] = row_runs(exclude) if exclude is not None and exclude.dim() == 2 else []
        for block in self._make_blocks() if self._blocks is None else self._blocks:
            self._look_into(block, query, best, exclude, runs)
        return best.index

    def _look_into(self, block: Block, query: Query, best: Nearest, exclude: Tensor | None, runs: list[Run]) -> None:
        scores = query.coarse @ block.coarse.T  # (S, R)
        scores[:, block.size :] = float("-inf")
        hide(scores, block.first, block.size, exclude, runs)
        rows, places, crowded = find_pairs(query, block, scores, best)
        if len(rows):
            numbers = places + block.first
            cosine = self._cosine(query.direction, rows, numbers)
            count = len(query.direction)
            best.merge(by_row(cosine, rows, count, float("-inf")), by_row(numbers, rows, count, -1), slice(None))
        if len(crowded):
            self._compare_all(query.direction, crowded, block, scores, best)

    def _cosine(self, direction: Tensor, rows: Tensor, numbers: Tensor) -> Tensor:
        """The cosines of pairs, (P,) float32."""
        step = max(1, self._spare // (16 * direction.size(1)))
        parts = [
            (direction[rows[b:e]] * self.frames[numbers[b:e]].float()).sum(dim=1) for b, e in _steps(len(rows), step)
        ]
        return torch.cat(parts) / self._lengths[numbers]

    def _compare_all(self, direction: Tensor, rows: Tensor, block: Block, scores: Tensor, best: Nearest) -> None:
        """Compares some source frames, (Q,), with all of a block's that are not hidden."""
        # Where float32 products are allowed to be coarse, float64 ones are not.
        fine = torch.float32 if torch.get_float32_matmul_precision() == "highest" else torch.float64
        others = self._directions(block.first, block.first + block.size).to(fine)
        k = min(best.index.size(1), block.size)
        for b, e in _steps(len(rows), max(1, len(direction) // WHOLE)):
            some = rows[b:e]
            cosine = (direction[some].to(fine) @ others.T).float()
            cosine.masked_fill_(scores[some, : block.size] == float("-inf"), float("-inf"))
            top = cosine.topk(k, dim=1)
            best.merge(top.values, top.indices + block.first, some)

    def _directions(self, begin: int, end: int) -> Tensor:
        """Frames of length 1, float32."""
        return self.frames[begin:end].float() / self._lengths[begin:end, None]

    def _make_blocks(self) -> Iterator[Block]:
        for begin, end in _steps(len(self), self.columns):
            yield make_block(self._directions(begin, end), self._centre, begin, self.dtype)

    def _measure(self) -> tuple[Tensor, Tensor]:
        """The lengths of the frames, (N,), and the mean of their directions, (D,)."""
        lengths = torch.empty(len(self), device=self.frames.device)
        total = torch.zeros(self.frames.size(1), device=self.frames.device)
        for begin, end in _steps(len(self), self.columns):
            frames = self.frames[begin:end].float()
            lengths[begin:end] = frames.norm(dim=1).clamp(min=1e-12)
            total += (1 / lengths[begin:end]) @ frames
        if not bool(lengths.isfinite().all()):
            number = int(lengths.isfinite().logical_not().nonzero()[0, 0])
            raise SpeechsslError(f"Reference frame {number} is not finite: leave out the audio that it comes from.")
        return lengths, total / len(self)

    def _check(self, source: Tensor, k: int, exclude: Tensor | None) -> None:
        if source.dim() != 2 or source.size(1) != self.frames.size(1):
            raise SpeechsslError(
                f"Source frames must be (T, {self.frames.size(1)}) as the reference, but are {tuple(source.shape)}."
            )
        available = len(self)
        if exclude is not None and exclude.dim() == 1:
            available -= int(exclude.sum())
        elif exclude is not None and len(exclude):
            available -= int((exclude[:, 1] - exclude[:, 0]).max())
        if available < k:
            raise SpeechsslError(f"The reference has {available} frames, fewer than k = {k}: give more target speech.")
        for begin, end in _steps(len(source), self.columns):
            if not bool(source[begin:end].float().norm(dim=1).isfinite().all()):
                raise SpeechsslError("A source frame is not finite: leave out the audio that it comes from.")


def nearest(
    source: Tensor,
    reference: Tensor,
    *,
    k: int,
    exclude: Tensor | None = None,
    memory_mb: int = MEMORY_MB,
    backend: Backend = "torch",
) -> Tensor:
    """Finds the k reference frames with the highest cosine similarity, exactly; `ReferencePool` tells what is what.

    Args:
        source: (T, D).
        reference: (N, D), N >= k.
        exclude: (N,) bool, or (T, 2) int64 stretches.

    Returns:
        (T, k) int64 indices into `reference`, best first.
    """
    pool = ReferencePool(reference, memory_mb=memory_mb, prepare=False, backend=backend)
    return pool.search(source, k=k, exclude=exclude)


def _steps(count: int, step: int) -> Iterator[tuple[int, int]]:
    return ((begin, min(begin + step, count)) for begin in range(0, count, step))


def _needed(rows: int, columns: int, k: int, frames: Tensor, item: int) -> int:
    """Bytes for `rows` source frames and a block of `columns` reference frames, whose products take `item` each."""
    width = frames.size(1)
    making = columns * width * (12 + 2 * item)  # in float32, as directions, and rounded; the one before is still there
    products = columns * width * (8 + item) + rows * columns * (item + 1) + rows // WHOLE * columns * (9 + item)
    looked_at = rows * crowd(k) * GROUP * 48  # at most; with their numbers and cosines
    return max(making, products) + rows * width * (12 + item) + looked_at


def _columns(frames: Tensor, item: int, memory: int) -> int:
    """Reference frames at once; there is room for an eighth as many source frames."""
    columns = LARGEST.get(frames.device.type, LARGEST_ELSEWHERE)[1]
    while columns > FEWEST[1] and _needed(columns // 8, columns, 4, frames, item) > memory:
        columns //= 2
    return columns


def _rows(columns: int, k: int, frames: Tensor, item: int, memory: int) -> int:
    """Source frames at once."""
    rows = LARGEST.get(frames.device.type, LARGEST_ELSEWHERE)[0]
    while (needed := _needed(rows, columns, k, frames, item)) > memory:
        if rows == FEWEST[0]:
            raise SpeechsslError(
                f"Searching frames of width {frames.size(1)} for k = {k} takes {needed / 8e5:.0f} MB, more than "
                f"`memory_mb` = {memory / 8e5:.0f}: raise it."
            )
        rows //= 2
    return rows
