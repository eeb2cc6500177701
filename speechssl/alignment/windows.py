"""The search for spoken queries by windows: one vector a query, compared with one vector for each place it could be at.

The vector of a stretch of speech is the mean of its frames. A query of N frames is compared with every window of N
frames of a document (with all of it, where it is shorter) by the cosine, and the best window counts. Against dynamic
time warping this drops the order of the frames within a window.

No window is ever made. Its product with a query's vector is a difference of running sums of products of frames; its
length is a sum over a square of the frames' products with one another, four entries of a summed table. So a query costs
one product a frame, where warping takes N, and all windows of a document cost what as many queries as it has frames do.

K layers, N query frames, M document frames, D width.
Papers: Sanabria, Tang and Goldwater 2023, "Analyzing acoustic word embeddings from pre-trained self-supervised speech
models", arXiv:2210.16043, for means as embeddings of words; Settle et al. 2017, "Query-by-example search with
discriminative neural acoustic word embeddings", arXiv:1706.03818, for the search by windows.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from speechssl.errors import SpeechsslError

LEAST = 1e-9
"""Length of a window, over that of its longest frame, below which it has no direction: its cosine is 0."""
CHUNK = 1024
"""Frames of a document whose products with one another are held at once, at least."""


def window_similarities(queries: Sequence[Tensor], documents: Iterable[Tensor]) -> Tensor:
    """The cosine of every query with the best window of every document, in every layer.

    Args:
        queries: each (K, N, D) features of K layers, any N >= 1.
        documents: each (K, M, D), any M >= 1; read once, in order, one at a time.

    Returns:
        (K, Q, documents) float64.
    """
    if not queries:
        raise SpeechsslError("`queries` is empty: there is nothing to search for.")
    lengths = torch.tensor([query.size(1) for query in queries])
    means = torch.stack([_unit(query.double().mean(dim=1)) for query in queries], dim=1)  # (K, Q, D)
    found = []
    for document in documents:
        # Neighbouring chunks share what the longest window but one frame needs, so that every window is in one.
        longest = min(int(lengths.max()), document.size(1))
        size = max(CHUNK, 2 * longest)
        best = means.new_full(means.shape[:2], -torch.inf)  # (K, Q)
        for first in range(0, max(1, document.size(1) - longest + 1), size - longest + 1):
            chunk = document[:, first : first + size].double()
            torch.maximum(best, _best_of_chunk(means, lengths.clamp(max=document.size(1)), chunk), out=best)
        found.append(best)
    return torch.stack(found, dim=2) if found else means.new_empty(*means.shape[:2], 0)


def _best_of_chunk(means: Tensor, lengths: Tensor, chunk: Tensor) -> Tensor:
    """The best cosine of each query (K, Q, D) with a window of its length (Q,) in (K, L, D), (K, Q)."""
    sums = F.pad((means @ chunk.mT).cumsum(dim=2), (1, 0))  # (K, Q, 1 + L)
    products = chunk @ chunk.mT  # (K, L, L)
    least = LEAST * products.diagonal(dim1=1, dim2=2).amax(dim=1).sqrt()[:, None, None] + 1e-300
    table = F.pad(products.cumsum(dim=1).cumsum(dim=2), (1, 0, 1, 0))  # (K, 1 + L, 1 + L)
    corners = table.diagonal(dim1=1, dim2=2)  # (K, 1 + L)
    best = means.new_empty(means.shape[:2])
    for length in sorted(set(lengths.tolist())):
        rows = lengths == length
        square = corners[:, length:] + corners[:, : corners.size(1) - length]
        square = square - 2 * table.diagonal(length, dim1=1, dim2=2)  # (K, L - N + 1)
        norm = square.clamp(min=0.0).sqrt()[:, None]
        product = sums[:, rows, length:] - sums[:, rows, : sums.size(2) - length]
        cosine = torch.where(norm > least, product / norm.clamp(min=least), 0.0)
        best[:, rows] = cosine.amax(dim=2).clamp(-1.0, 1.0)
    return best


def best_window(query: Tensor, document: Tensor) -> tuple[int, int]:
    """The first and the last frame of the window (M, D) that is most like the query (N, D)."""
    length = min(len(query), len(document))
    windows = _windows(_running_sums(document), len(query))
    first = int((windows @ _unit(query.double().mean(dim=0))).argmax())
    return first, first + length - 1


def _running_sums(document: Tensor) -> Tensor:
    """(M, D) -> (1 + M, D): the sum of the frames before each."""
    return F.pad(document.double().cumsum(dim=0), (0, 0, 1, 0))


def _windows(sums: Tensor, length: int) -> Tensor:
    """Sums over windows of `length` frames, of unit length, (M - N + 1, D)."""
    length = min(length, len(sums) - 1)
    return _unit(sums[length:] - sums[: len(sums) - length])


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=-1, eps=1e-300)
