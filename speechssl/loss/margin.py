"""Softmax over cosines, of which the right one has to win by a margin: how speaker embeddings are trained.

B batch, N classes.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

MarginKind = Literal["am_softmax", "aam_softmax"]
"""'am_softmax' takes the margin from the right cosine, 'aam_softmax' adds it to the right angle."""


def margin_softmax(cosine: Tensor, labels: Tensor, *, kind: MarginKind, scale: float, margin: float) -> Tensor:
    """The cross entropy of scaled cosines, summed over the batch, scalar.

    Args:
        cosine: (B, N) between embeddings and classes.
        labels: the right classes, (B,) int64.
        scale: what the cosines are multiplied by.
        margin: as a cosine, or as an angle in radians.

    Papers: Wang et al. 2018, eq. 6, arXiv:1801.05599 (additive margin); Deng et al. 2019, eq. 3, arXiv:1801.07698
    (additive angular margin).
    """
    chosen = F.one_hot(labels, cosine.size(1)).to(torch.promote_types(cosine.dtype, torch.float32))
    if kind == "am_softmax":
        logits = scale * (cosine - margin * chosen)
    else:
        logits = scale * torch.where(chosen.bool(), add_angle(cosine, margin), cosine)
    return F.cross_entropy(logits, labels, reduction="sum")


def add_angle(cosine: Tensor, margin: float) -> Tensor:
    """cos(angle + margin) where the angle leaves room for it, and a cosine that goes on falling beyond.

    Where angle + margin exceeds pi, the cosine would rise again; there it is cos(angle) - margin sin(margin), as in the
    authors' code (`insightface`, `recognition/arcface_torch/losses.py`).
    """
    sine = (1.0 - cosine.square()).clamp(min=1e-9).sqrt()
    moved = cosine * math.cos(margin) - sine * math.sin(margin)
    return torch.where(cosine > -math.cos(margin), moved, cosine - margin * math.sin(margin))
