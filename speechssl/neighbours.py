"""The nearest frames by cosine, exactly.

Shapes: T source frames, N reference frames, D width.
Reference: https://github.com/bshall/knn-vc (matcher.py: cosine distance).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.errors import SpeechsslError

CHUNK = 4096  # source frames whose similarities to all references are held at once


def nearest(source: Tensor, reference: Tensor, *, k: int, exclude: Tensor | None = None) -> Tensor:
    """Finds the k reference frames with the highest cosine similarity, exactly.

    Args:
        source: (T, D).
        reference: (N, D), N >= k.
        exclude: (N,) bool, True = not to be found (frames of the source utterance itself); None = none.

    Returns:
        (T, k) int64 indices into `reference`, best first.
    """
    available = reference.size(0) if exclude is None else int((~exclude).sum())
    if available < k:
        raise SpeechsslError(f"The reference has {available} frames, fewer than k = {k}: give more target speech.")
    directions = F.normalize(reference, dim=1)
    found = []
    for chunk in torch.split(F.normalize(source, dim=1), CHUNK):
        similarity = chunk @ directions.T  # (T', N)
        if exclude is not None:
            similarity = similarity.masked_fill(exclude, float("-inf"))
        found.append(similarity.topk(k, dim=1).indices)
    return torch.cat(found)
