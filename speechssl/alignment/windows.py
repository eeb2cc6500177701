"""The search for spoken queries by windows: one vector a query, compared with one vector for each place it could be at.

The vector of a stretch of speech is the mean of its frames. A query of N frames is compared with every window of N
frames of a document (with all of it, where it is shorter) by the cosine, and the best window counts. Against dynamic
time warping this drops the order of the frames within a window, and costs about N times less.

K layers, N query frames, M document frames, D width.
Papers: Sanabria, Tang and Goldwater 2023, "Analyzing acoustic word embeddings from pre-trained self-supervised speech
models", arXiv:2210.16043, for means as embeddings of words; Settle et al. 2017, "Query-by-example search with
discriminative neural acoustic word embeddings", arXiv:1706.03818, for the search by windows.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from speechssl.errors import SpeechsslError

LEAST = 1e-12
"""Length of a vector below which it has no direction: its cosine is 0."""


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
        sums = _running_sums(document)
        best = means.new_empty(means.shape[:2])  # (K, Q)
        for length in sorted(set(lengths.tolist())):
            rows = lengths == length
            best[:, rows] = (means[:, rows] @ _windows(sums, length).mT).amax(dim=2)
        found.append(best.clamp(-1.0, 1.0))
    return torch.stack(found, dim=2) if found else means.new_empty(*means.shape[:2], 0)


def best_window(query: Tensor, document: Tensor) -> tuple[int, int]:
    """The first and the last frame of the window (M, D) that is most like the query (N, D)."""
    length = min(len(query), len(document))
    windows = _windows(_running_sums(document), len(query))
    first = int((windows @ _unit(query.double().mean(dim=0))).argmax())
    return first, first + length - 1


def _running_sums(document: Tensor) -> Tensor:
    """(..., M, D) -> (..., 1 + M, D): the sum of the frames before each."""
    return torch.nn.functional.pad(document.double().cumsum(dim=-2), (0, 0, 1, 0))


def _windows(sums: Tensor, length: int) -> Tensor:
    """Sums over windows of `length` frames, of unit length, (..., M - N + 1, D)."""
    length = min(length, sums.size(-2) - 1)
    return _unit(sums[..., length:, :] - sums[..., : sums.size(-2) - length, :])


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1, eps=LEAST)
