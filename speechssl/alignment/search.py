"""The search for spoken queries in spoken documents, by all layers of an upstream in one pass.

Each query is warped onto the best stretch of each document. The defaults are SUPERB's query-by-example task: distance
exp(1 - cos) - 1, its rows mapped to [0, 1], asymmetric steps, open ends, divided by the query's frames.

Documents stream through once, with all their layers, and are compared with all queries while they are at hand. A block
holds the distances of a group of queries from a group of documents, in as many layers as fit `block_bytes`: one product
for all these layers, and one call that warps all these pairs, spread over the threads. So neither few queries nor short
documents make many small calls, nothing is padded on the processor, and besides the queries no more than a square
block's side of document frames is held. What remains is the products of the frames: they cost 2 D operations a cell,
against a handful for the warping.

S3PRL (`downstream/quesst14_dtw/dtw_utils.py`, version 0.4.18) further standardises the features over all queries and
documents beforehand, gives queries of fewer than 5 frames the score 0 everywhere, and standardises the scores of each
query afterwards (`speechssl.metric.spoken_term.standardise_scores`): these are the task's business.

Paper: Yang et al. 2021 (SUPERB), arXiv:2105.01051, sec. 2 (query by example); Hazen, Shen and White 2009,
"Query-by-example spoken term detection using phonetic posteriorgram templates".
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from speechssl.alignment.dtw import Backend, Distance, WarpSettings, prepare_frames, prepared_distances, warp_block
from speechssl.errors import SpeechsslError

CPU_BLOCK = 4 << 20
"""Bytes: the distances stay in the processor's cache between their making and their use."""
DEVICE_BLOCK = 256 << 20
"""Bytes: enough pairs at once that launching the row operations does not count."""

SUBSEQUENCE = WarpSettings("asymmetric", open_ends=True, minmax=True)


@dataclass(frozen=True)
class SearchSettings:
    """How queries are compared with documents; the defaults are SUPERB's."""

    distance: Distance = "cosine_exp"
    warp: WarpSettings = SUBSEQUENCE


@dataclass(frozen=True)
class _Group:
    """Sequences laid side by side."""

    frames: Tensor
    """(K, R, D), prepared."""
    starts: Tensor
    """(G,) int64, the first frame of each."""
    lengths: Tensor
    """(G,) int64."""


def search_distances(
    queries: Sequence[Tensor],
    documents: Iterable[Tensor],
    *,
    settings: SearchSettings = SearchSettings(),
    block_bytes: int | None = None,
    device: torch.device | str = "cpu",
    backend: Backend = "auto",
) -> Tensor:
    """The distance of every query from every document in every layer; its negative is the score of a match.

    Args:
        queries: each (K, N, D) features of K layers, any N >= 1.
        documents: each (K, M, D), any M >= 1, also shorter than a query; read once, in order, a few at a time. On a
            device neighbours of like length waste less.
        settings: distance and warping.
        block_bytes: most bytes of distances held at once (one pair of any size is always taken); None = 4 MiB on the
            processor, 256 MiB elsewhere. On a device a small multiple of it is in use. Of documents the root of that
            many cells is held, in frames (1024 and 8192), or one document.
        device: where to compute; features are moved there.
        backend: see `warp_distances`.

    Returns:
        (K, Q, documents) float64 on the processor.

    Raises:
        SpeechsslError: no query, or features that are not finite or differ in layers or width, by number.
    """
    device = torch.device(device)
    block_bytes = block_bytes or (CPU_BLOCK if device.type == "cpu" else DEVICE_BLOCK)
    if not queries:
        raise SpeechsslError("`queries` is empty: there is nothing to search for.")
    layers, _, width = queries[0].shape if queries[0].ndim == 3 else (0, 0, 0)
    cells = max(1, block_bytes // (8 if queries[0].dtype == torch.float64 else 4))
    checked = _checked(queries, "queries", layers, width)
    side = math.isqrt(cells)
    packs = list(_groups(checked, side, settings.distance, device))
    columns = min(side, cells // max(pack.frames.shape[1] for pack in packs))
    found: list[Tensor] = []
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        for group in _groups(_checked(documents, "documents", layers, width), columns, settings.distance, device):
            parts = [_compare(pack, group, settings, cells=cells, backend=backend, pool=pool) for pack in packs]
            found.append(torch.cat(parts, dim=1))  # (K, Q, G)
    return torch.cat(found, dim=2) if found else torch.empty(layers, len(queries), 0, dtype=torch.float64)


def _compare(
    queries: _Group,
    documents: _Group,
    settings: SearchSettings,
    *,
    cells: int,
    backend: Backend,
    pool: ThreadPoolExecutor,
) -> Tensor:
    """The distances of a group of queries from a group of documents, (K, queries, documents)."""
    frames = documents.frames.to(queries.frames.dtype)  # (K, C, D)
    layers, rows, columns = len(frames), queries.frames.shape[1], frames.shape[1]
    together = max(1, min(layers, cells // (rows * columns)))
    out = frames.new_empty(together, rows, columns)
    pairs = _pairs(queries, documents)
    found = []
    for first in range(0, layers, together):
        part = slice(first, first + together)
        size = len(frames[part])
        block = prepared_distances(queries.frames[part], frames[part], distance=settings.distance, out=out[:size])
        shifts = torch.zeros(size, 1, 4, dtype=torch.int64)
        shifts[:, 0, 0] = torch.arange(size) * rows  # one layer's rows below the other's
        of_all = (shifts + pairs).view(-1, 4)
        found.append(warp_block(block.view(-1, columns), of_all, settings=settings.warp, backend=backend, pool=pool))
    return torch.cat(found).view(layers, len(queries.starts), len(documents.starts))


def _pairs(queries: _Group, documents: _Group) -> Tensor:
    """Each query with each document as `warp_block` takes them, (queries * documents, 4)."""
    shape = len(queries.starts), len(documents.starts)
    sides = (queries.starts, queries.lengths), (documents.starts, documents.lengths)
    return torch.stack(
        [side[:, None].expand(shape).flatten() for side in sides[0]]
        + [side[None, :].expand(shape).flatten() for side in sides[1]],
        dim=1,
    )


def _groups(sequences: Iterable[Tensor], most: int, distance: Distance, device: torch.device) -> Iterator[_Group]:
    """Neighbours together, at most `most` frames (or one sequence) a group."""
    held: list[Tensor] = []
    frames = 0
    for features in sequences:
        if held and frames + features.shape[1] > most:
            yield _group(held, distance, device)
            held, frames = [], 0
        held.append(features)
        frames += features.shape[1]
    if held:
        yield _group(held, distance, device)


def _group(held: Sequence[Tensor], distance: Distance, device: torch.device) -> _Group:
    lengths = torch.tensor([features.shape[1] for features in held])
    frames = prepare_frames(torch.cat([features.to(device) for features in held], dim=1), distance=distance)
    return _Group(frames, lengths.cumsum(0) - lengths, lengths)


def _checked(sequences: Iterable[Tensor], name: str, layers: int, width: int) -> Iterator[Tensor]:
    for number, features in enumerate(sequences):
        shape = tuple(features.shape)
        if len(shape) != 3 or 0 in shape or (shape[0], shape[2]) != (layers, width):
            raise SpeechsslError(
                f"`{name}` must have shape (K, T, D) = ({layers}, >= 1, {width}) as the first query, "
                f"but {name}[{number}] has {shape}."
            )
        if not torch.isfinite(features).all():
            layer, frame, _ = (~torch.isfinite(features)).nonzero()[0].tolist()
            raise SpeechsslError(
                f"`{name}` must be finite, but {name}[{number}] is not at layer {layer}, frame {frame}: "
                "check its audio, or compute the features in float32."
            )
        yield features
