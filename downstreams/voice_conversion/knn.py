"""k-nearest-neighbour conversion of frames: each source frame becomes the mean of the target's k most similar frames.

Shapes: T source frames, N reference frames, D width.
Reference: https://github.com/bshall/knn-vc (matcher.py: cosine distance, k = 4, uniform mean).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.neighbours import ReferencePool, nearest

MIN_POOL = 200  # frames of a speaker's other speech, below which a batch's utterance is not prematched


def convert(
    source: Tensor,
    reference: Tensor | ReferencePool,
    *,
    k: int,
    values: Tensor | None = None,
    exclude: Tensor | None = None,
) -> Tensor:
    """Replaces each source frame by the uniform mean of its k nearest reference frames.

    Args:
        source: (T, D) frames to match.
        reference: (N, D) frames of the target speaker in the same space, or a pool of them that serves many sources.
        values: (N, E) what is averaged, frame by frame beside `reference`; None = `reference` itself.
        exclude: (N,) bool, True = never used; or (T, 2) int64, a stretch that a source frame never uses.

    Returns:
        (T, E).

    Paper: Baas et al. 2023, Voice Conversion With Just Nearest Neighbors, sec. 2, arXiv:2305.18975.
    """
    if isinstance(reference, ReferencePool):
        frames, found = reference.frames, reference.search(source, k=k, exclude=exclude)
    else:
        frames, found = reference, nearest(source, reference, k=k, exclude=exclude)
    return F.embedding_bag(found, frames if values is None else values, mode="mean")  # never (T, k, E)


def prematch(features: Tensor, lengths: Tensor, speakers: Sequence[str], *, k: int, space: Tensor) -> Tensor:
    """Replaces each frame of a batch by the mean of the k nearest frames of the same speaker's other utterances.

    So a network sees in training what conversion will give it. An utterance whose speaker says too little else in the
    batch stays as it is. Gradients flow through the averaged frames, not through the choice of neighbours.

    Args:
        features: (B, T, D).
        lengths: valid frames, (B,) int64.
        speakers: B names.
        space: (B, T, E) the frames as they are compared.

    Returns:
        (B, T, D), unchanged beyond `lengths`.

    Paper: Baas et al. 2023, sec. 2.3, arXiv:2305.18975; there the pool is all that the speaker says.
    """
    matched = features.clone()
    for row, speaker in enumerate(speakers):
        others = [i for i, name in enumerate(speakers) if name == speaker and i != row]
        if sum(int(lengths[i]) for i in others) < MIN_POOL:
            continue
        pool = torch.cat([features[i, : int(lengths[i])] for i in others])  # (N, D)
        compared = torch.cat([space[i, : int(lengths[i])] for i in others])
        size = int(lengths[row])
        matched[row, :size] = convert(space[row, :size], compared, k=k, values=pool)
    return matched
