"""Scores of queries in documents, for several layers at once, in bounded memory.

Features lie in memory maps; documents are standardised as they are searched, a few at a time, and queries are taken in
groups. K layers, Q queries, T frames, D width.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from speechssl.alignment.dtw import frame_distances, warp_path
from speechssl.alignment.search import search_distances
from speechssl.alignment.windows import best_window, window_similarities

from .config import QueryByExampleConfig

QUERY_BYTES = 1 << 30
"""Of the frames of queries that are searched for in one pass over the documents."""

Read = Callable[[str], Tensor]
"""The features of an utterance, (K, T, D)."""
Report = Callable[[float, str], None]
"""Is told about once a second what share of the search was done since the last time, and how far it is."""


@dataclass(frozen=True)
class Standard:
    """The mean and the deviation of each dimension of each layer, (K, D) float32."""

    mean: Tensor
    deviation: Tensor

    def apply(self, features: Tensor) -> Tensor:
        """(K, T, D) -> the same in float32."""
        return (features.float() - self.mean[:, None]) / self.deviation[:, None]


def find_standard(arrays: Iterable[Tensor]) -> Standard:
    """Of all frames of all arrays together, (K, T, D) each; the deviation is the unbiased one, and at least 1e-9.

    S3PRL `quesst14_dtw/dtw_utils.py` (0.4.18) takes the mean and `std` of what it concatenates, queries and documents.
    Here parts are merged in float64 (Chan, Golub and LeVeque 1979), so that one array at a time is held.
    """
    count = 0
    mean = scatter = torch.zeros(())
    for array in arrays:
        frames = array.size(1)
        variance, centre = torch.var_mean(array.float(), dim=1, correction=0)  # (K, D) each
        shift, total = centre.double() - mean, count + frames
        scatter = scatter + frames * variance.double() + shift.square() * (count * frames / total)
        mean = mean + shift * (frames / total)
        count = total
    deviation = (scatter / max(count - 1, 1)).sqrt().clamp(min=1e-9)
    return Standard(mean.float(), deviation.float())


def no_standard(array: Tensor) -> Standard:
    """Leaves arrays like (K, T, D) as they are."""
    shape = array.size(0), array.size(2)
    return Standard(torch.zeros(shape), torch.ones(shape))


def score_all(
    queries: Sequence[str],
    documents: Sequence[str],
    read: Read,
    *,
    standard: Standard,
    config: QueryByExampleConfig,
    device: torch.device,
    report: Report,
) -> Tensor:
    """The score of each query in each document, higher = more likely there; 0 for queries that are too short.

    Returns:
        (K, Q, documents) float64.
    """
    layers = standard.mean.size(0)
    scores = torch.zeros(layers, len(queries), len(documents), dtype=torch.float64)
    groups = list(_groups(queries, read, config.min_query_frames))
    tell = _Teller(len(groups) * len(documents), report)
    with _all_cores():
        for rows in groups:
            spoken = [standard.apply(read(queries[row])) for row in rows]
            heard = (standard.apply(read(name)) for name in tell.each(documents))
            scores[:, rows] = _compare(spoken, heard, config, device)
    return scores


def _compare(
    queries: Sequence[Tensor], documents: Iterable[Tensor], config: QueryByExampleConfig, device: torch.device
) -> Tensor:
    if config.head == "windows":
        return window_similarities(queries, documents)
    return -search_distances(queries, documents, settings=config.search, device=device)


def find_place(query: Tensor, document: Tensor, config: QueryByExampleConfig) -> tuple[int, int]:
    """The first and the last frame of a document (M, D) that the query (N, D) is matched with, both standardised."""
    if config.head == "windows":
        return best_window(query, document)
    costs = frame_distances(query, document, distance=config.distance)
    path = warp_path(costs, settings=config.search.warp)
    return int(path[0, 1]), int(path[-1, 1])


def _groups(queries: Sequence[str], read: Read, least: int) -> Iterator[list[int]]:
    """Rows of those queries that are long enough, as many at a time as `QUERY_BYTES` hold."""
    rows: list[int] = []
    held = 0
    for row, name in enumerate(queries):
        array = read(name)
        if array.size(1) < least:
            continue
        size = 4 * array.numel()
        if rows and held + size > QUERY_BYTES:
            yield rows
            rows, held = [], 0
        rows.append(row)
        held += size
    if rows:
        yield rows


class _Teller:
    """Reports how much of the search is done."""

    def __init__(self, total: int, report: Report) -> None:
        self.total, self.report = total, report
        self.done = self.told = 0
        self.last = time.monotonic()

    def each(self, names: Sequence[str]) -> Iterator[str]:
        """Hands the names on."""
        for name in names:
            yield name
            self.done += 1
            if time.monotonic() - self.last >= 1.0 or self.done == self.total:
                self.last = time.monotonic()
                self.report((self.done - self.told) / self.total, f"{self.done} of {self.total} documents searched")
                self.told = self.done


@contextmanager
def _all_cores() -> Iterator[None]:
    """Of this machine; a process of several that run side by side keeps the threads that it has."""
    before = torch.get_num_threads()
    if multiprocessing.parent_process() is None:
        affinity = getattr(os, "sched_getaffinity", None)
        torch.set_num_threads(len(affinity(0)) if affinity else os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
