"""Dynamic time warping against a plain recursion written from its definition, librosa, and a search of all paths."""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import librosa
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor

from speechssl.alignment.dtw import (
    STEP_PATTERNS,
    Backend,
    StepPattern,
    WarpSettings,
    frame_distances,
    warp_block,
    warp_distances,
    warp_path,
)
from speechssl.alignment.search import SUBSEQUENCE, SearchSettings, search_distances
from speechssl.errors import ConfigError, SpeechsslError

BACKENDS: tuple[Backend, ...] = ("kernel", "torch")
STEPS = {
    "asymmetric": {(1, 0): 1, (1, 1): 1, (1, 2): 1},
    "symmetric1": {(1, 1): 1, (0, 1): 1, (1, 0): 1},
    "symmetric2": {(1, 1): 2, (0, 1): 1, (1, 0): 1},
}


def slow_distance(costs: NDArray[np.float64], settings: WarpSettings) -> float:
    """The definition: the cheapest way to the end, one cell at a time, divided as the pattern says."""
    n, m = map(int, costs.shape)
    if settings.minmax:
        low, high = costs.min(1, keepdims=True), costs.max(1, keepdims=True)
        costs = (costs - low) / np.clip(high - low, 1e-9, np.inf)

    @lru_cache(None)
    def reach(i: int, j: int) -> float:
        if i < 0 or j < 0:
            return math.inf
        begins = i == 0 and (j == 0 or settings.open_ends)
        cost = float(costs[i, j])
        before = [reach(i - a, j - b) + w * cost for (a, b), w in STEPS[settings.step_pattern].items()]
        return min([*before, cost] if begins else before)

    total = min(reach(n - 1, j) for j in range(m)) if settings.open_ends else reach(n - 1, m - 1)
    return total / {"asymmetric": n, "symmetric1": 1, "symmetric2": n + m}[settings.step_pattern]


def superb_distance(query: Tensor, document: Tensor) -> float:
    """What S3PRL computes for one pair, by scipy and the slow recursion."""
    return slow_distance(np.exp(cdist(query.numpy(), document.numpy(), "cosine")) - 1, SUBSEQUENCE)


def features(seed: int, *lengths: int, layers: int = 3, width: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(layers, t, width, generator=generator) for t in lengths]


@pytest.mark.parametrize("backend", BACKENDS)
def test_search_is_superbs_for_every_layer_query_and_document(backend: Backend) -> None:
    queries, documents = features(0, 1, 9, 30, 4), features(1, 40, 1, 7, 25, 30)
    found = search_distances(queries, documents, backend=backend)
    assert found.shape == (3, 4, 5)
    for k, q, d in np.ndindex(3, 4, 5):
        assert float(found[k, q, d]) == pytest.approx(superb_distance(queries[q][k], documents[d][k]), abs=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "settings", [*map(WarpSettings, STEP_PATTERNS), SUBSEQUENCE, WarpSettings("symmetric2", minmax=True)]
)
def test_padded_batches_are_warped_as_the_slow_recursion_warps_each_pair(
    backend: Backend, settings: WarpSettings
) -> None:
    rng = np.random.default_rng(0)
    queries, documents = torch.tensor([1, 5, 12, 12, 8]), torch.tensor([1, 9, 12, 20, 3])
    costs = torch.from_numpy(rng.random((5, 12, 20)))
    for padding in (math.nan, -math.inf, -1e9):
        for b in range(5):
            costs[b, queries[b] :] = padding
            costs[b, :, documents[b] :] = padding
        found = warp_distances(costs, queries, documents, settings=settings, backend=backend)
        for b in range(5):
            plain = costs[b, : queries[b], : documents[b]].numpy()
            assert float(found[b]) == pytest.approx(slow_distance(plain, settings), abs=1e-12)


@pytest.mark.parametrize("pattern", STEP_PATTERNS)
def test_closed_distances_and_paths_are_the_best_of_all_paths(pattern: StepPattern) -> None:
    rng = np.random.default_rng(3)
    for n, m in ((4, 5), (3, 3), (5, 4)):
        costs = rng.random((n, m))
        best, path = min(every_path(costs, pattern), key=lambda found: found[0])
        settings = WarpSettings(pattern)
        length = {"asymmetric": n, "symmetric1": 1, "symmetric2": n + m}[pattern]
        tensor = torch.from_numpy(costs)
        assert float(warp_distances(tensor[None], settings=settings)[0]) * length == pytest.approx(best, abs=1e-12)
        assert warp_path(tensor, settings=settings).tolist() == [list(cell) for cell in path]


def every_path(costs: NDArray[np.float64], pattern: str) -> Iterator[tuple[float, list[tuple[int, int]]]]:
    n, m = costs.shape

    def follow(
        cell: tuple[int, int], cost: float, path: list[tuple[int, int]]
    ) -> Iterator[tuple[float, list[tuple[int, int]]]]:
        if cell == (n - 1, m - 1):
            yield cost, path
        for (a, b), weight in STEPS[pattern].items():
            i, j = cell[0] + a, cell[1] + b
            if i < n and j < m:
                yield from follow((i, j), cost + weight * costs[i, j], [*path, (i, j)])

    yield from follow((0, 0), float(costs[0, 0]), [(0, 0)])


def test_librosa_finds_the_same_costs_and_paths() -> None:
    rng = np.random.default_rng(1)
    costs = rng.random((14, 31))
    steps = {"symmetric1": ([[1, 1], [0, 1], [1, 0]], False), "asymmetric": ([[1, 0], [1, 1], [1, 2]], True)}
    for pattern, (sigma, open_ends) in steps.items():
        size = np.array(sigma)
        ones, zeros = np.ones(3), np.zeros(3)
        table, path = librosa.sequence.dtw(
            C=costs, step_sizes_sigma=size, weights_mul=ones, weights_add=zeros, subseq=open_ends, backtrack=True
        )
        settings = WarpSettings(pattern, open_ends=open_ends)  # type: ignore[arg-type]  # a key of the table above
        tensor = torch.from_numpy(costs)
        total = float(warp_distances(tensor[None], settings=settings)[0]) * (14 if open_ends else 1)
        assert total == pytest.approx(table[-1].min() if open_ends else table[-1, -1], abs=1e-12)
        assert warp_path(tensor, settings=settings).tolist() == path[::-1].tolist()


def test_an_open_path_pays_exactly_the_distance_and_keeps_every_query_frame() -> None:
    costs = torch.rand(10, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    path = warp_path(costs, settings=WarpSettings("asymmetric", open_ends=True))
    assert path[:, 0].tolist() == list(range(10))
    assert set(path[:, 1].diff().tolist()) <= {0, 1, 2}
    distance = warp_distances(costs[None], settings=WarpSettings("asymmetric", open_ends=True))
    assert float(costs[path[:, 0], path[:, 1]].mean()) == pytest.approx(float(distance[0]), abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_size_of_the_blocks_changes_nothing(backend: Backend) -> None:
    queries, documents = features(5, 6, 3, 17, 9), features(6, 20, 4, 33, 12, 8)
    whole = search_distances(queries, documents, backend=backend)
    for block_bytes in (1, 400, 4_000) if backend == "kernel" else (1_000, 4_000):
        parts = search_distances(queries, iter(documents), block_bytes=block_bytes, backend=backend)
        torch.testing.assert_close(parts, whole, rtol=0, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_layers_in_one_pass_give_what_each_gives_by_itself(backend: Backend) -> None:
    queries, documents = features(7, 6, 3, 11, layers=5), features(8, 20, 4, 33, 12, layers=5)
    alone = [
        search_distances([q[k : k + 1] for q in queries], [d[k : k + 1] for d in documents], backend=backend)
        for k in range(5)
    ]
    for block_bytes in (None, 6_000, 3_000, 1_000):  # all layers at once, then two or three, then one
        read: list[int] = []

        def each() -> Iterator[Tensor]:
            for number, document in enumerate(documents):
                read.append(number)  # noqa: B023  called before the next round
                yield document

        found = search_distances(queries, each(), block_bytes=block_bytes, backend=backend)
        torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=2e-6)
        assert read == [0, 1, 2, 3]


@pytest.mark.parametrize("queries", [1, 3, 40])
def test_memory_is_bounded_however_few_the_queries(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, columns = [], []

    def spy(block: Tensor, pairs: Tensor, **settings: Any) -> Tensor:
        blocks.append(block.numel())
        columns.append(block.shape[1])
        return warp_block(block, pairs, **settings)

    monkeypatch.setattr("speechssl.alignment.search.warp_block", spy)
    documents = features(10, *(5 + k % 7 for k in range(60)))
    found = search_distances(features(9, *[4] * queries), documents, block_bytes=4 * 40**2)
    assert found.shape == (3, queries, 60)
    assert max(blocks) <= 40**2 and max(columns) <= 40


def test_a_query_that_lies_in_a_document_has_distance_zero_there_and_ranks_it_first() -> None:
    documents = features(7, 50, 60, 45, layers=2, width=32)
    query = documents[1][:, 13:29]
    found = search_distances([query], documents)
    assert float(found[:, 0, 1].abs().max()) < 1e-6
    assert found[:, 0].argmin(dim=1).tolist() == [1, 1]


def test_half_precision_is_computed_in_single_and_double_stays_double() -> None:
    queries, documents = features(8, 9), features(9, 30)
    half = search_distances([q.bfloat16() for q in queries], [d.bfloat16() for d in documents])
    rounded = search_distances([q.bfloat16().float() for q in queries], [d.bfloat16().float() for d in documents])
    assert torch.equal(half, rounded)
    double = search_distances([q.double() for q in queries], [d.double() for d in documents])
    assert float(double[0, 0, 0]) == pytest.approx(superb_distance(queries[0][0], documents[0][0]), abs=1e-7)
    mixed = search_distances([q.double() for q in queries], documents)
    torch.testing.assert_close(mixed, double, rtol=0, atol=1e-6)


def test_frame_distances_are_those_of_scipy() -> None:
    query, document = (x[0].double() for x in features(10, 6, 9, layers=1))
    cosine = cdist(query.numpy(), document.numpy(), "cosine")
    expected = {
        "cosine": cosine,
        "cosine_exp": np.exp(cosine) - 1,
        "angular": np.arccos(1 - cosine) / np.pi,
        "euclidean": cdist(query.numpy(), document.numpy()),
    }
    for name, values in expected.items():
        found = frame_distances(query, document, distance=name)  # type: ignore[arg-type]  # a key of the table above
        np.testing.assert_allclose(found.numpy(), values, rtol=0, atol=1e-12)


def test_other_distances_and_closed_ends_search_too() -> None:
    queries, documents = features(11, 8, 5), features(12, 9, 6)
    settings = SearchSettings("euclidean", WarpSettings("symmetric2"))
    found = search_distances(queries, documents, settings=settings)
    for k, q, d in np.ndindex(3, 2, 2):
        costs = cdist(queries[q][k].numpy().astype(float), documents[d][k].numpy().astype(float))
        assert float(found[k, q, d]) == pytest.approx(slow_distance(costs, settings.warp), abs=1e-5)


def test_a_frame_of_zeros_is_at_cosine_distance_one_from_all() -> None:
    document = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(frame_distances(torch.zeros(1, 4), document, distance="cosine"), torch.ones(1, 5))


def test_a_document_of_one_frame_matches_perfectly_once_rows_are_mapped_to_zero_and_one() -> None:
    queries, documents = features(13, 20), features(14, 1)
    assert superb_distance(queries[0][0], documents[0][0]) == 0.0  # so does the official one
    assert search_distances(queries, documents).abs().max() == 0.0


def test_no_documents_give_no_columns() -> None:
    assert search_distances(features(0, 4, 5), []).shape == (3, 2, 0)


def nan_document() -> object:
    documents = features(1, 5, 6)
    documents[1][2, 4, 0] = math.nan
    return search_distances(features(0, 3), documents)


REFUSED: list[tuple[str, Callable[[], object]]] = [
    (r"documents\[1\] is not at layer 2, frame 4", nan_document),
    (r"queries\[1\] has", lambda: search_distances([*features(0, 3), *features(0, 3, width=5)], [])),
    (r"documents\[0\] has", lambda: search_distances(features(0, 3), features(0, 3, layers=2))),
    (r"documents\[0\] has", lambda: search_distances(features(0, 3), features(0, 0))),
    ("`queries` is empty", lambda: search_distances([], features(0, 3))),
    (r"costs\[0, 1, 0\] = nan", lambda: warp_distances(torch.tensor([[[0.0], [math.nan]]]), settings=SUBSEQUENCE)),
    (r"query_lengths\[0\] = 0", lambda: warp_distances(torch.ones(1, 2, 2), torch.tensor([0]), settings=SUBSEQUENCE)),
    (r"must have shape \(1,\)", lambda: warp_distances(torch.ones(1, 2, 2), torch.ones(2), settings=SUBSEQUENCE)),
    (r"shape \(B, N, M\)", lambda: warp_distances(torch.ones(2, 2), settings=SUBSEQUENCE)),
    ("Pair 0 has no path: 2 query frames", lambda: warp_path(torch.ones(2, 4), settings=WarpSettings("asymmetric"))),
]


@pytest.mark.parametrize(("message", "call"), REFUSED)
def test_bad_input_is_refused_by_place(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(SpeechsslError, match=message):
        call()


def test_settings_that_have_no_meaning_are_refused() -> None:
    with pytest.raises(ConfigError, match="open_ends"):
        WarpSettings("symmetric2", open_ends=True)
    with pytest.raises(ConfigError, match="step_pattern"):
        WarpSettings("symmetric3")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ConfigError, match="distance"):
        frame_distances(torch.ones(1, 2), torch.ones(1, 2), distance="cosine_log")  # type: ignore[arg-type]  # on purpose
