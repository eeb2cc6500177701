"""Predicting several hidden states of a teacher from one of a student.

N frames, L predicted layers, D width of the student, E width of the teacher.
Reference: S3PRL `pretrain/distiller/pretrain_expert.py` and `upstream/distiller/model.py`. There the means are taken
over padding too; here the caller gives the valid frames.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DISTILLATION_LIMITS = {"prediction_std": 0.01}
"""Of a healthy run: below, all frames are predicted alike."""


class LayerPrediction(nn.Module):
    """A head per layer: a shared linear layer to L parts, GELU, and a linear layer for each part.

    Paper: Chang et al. 2022, sec. 3.1, arXiv:2110.01900.
    """

    def __init__(self, width: int, *, layers: int, output_width: int) -> None:
        """
        Args:
            width: D.
            layers: L.
            output_width: E.
        """
        super().__init__()
        self.layers = layers
        self.expand = nn.Linear(width, layers * width)
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(layers, width, output_width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(layers, 1, output_width).uniform_(-bound, bound))

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, D) -> (L, N, E)."""
        parts = F.gelu(self.expand(hidden)).view(len(hidden), self.layers, -1).transpose(0, 1)  # (L, N, D)
        return torch.baddbmm(self.bias.to(parts.dtype), parts, self.weight.to(parts.dtype))


@dataclass(frozen=True)
class Distillation:
    """How far predictions are from their targets; sums over the frames, float32."""

    l1: Tensor
    """Mean over width of the absolute difference, (L,)."""
    cosine: Tensor
    """-log sigmoid of the cosine, (L,)."""
    similarity: Tensor
    """The cosine, (L,)."""


def distillation(predicted: Tensor, target: Tensor) -> Distillation:
    """Compares in float32, whatever autocast says.

    Args:
        predicted: (L, N, E).
        target: (L, N, E).

    Paper: Chang et al. 2022, eq. 1, arXiv:2110.01900.
    """
    with torch.autocast(predicted.device.type, enabled=False):
        x, y = predicted.float(), target.float()
        l1 = (x - y).abs().mean(dim=2).sum(dim=1)
        similarity = F.cosine_similarity(x, y, dim=2)  # (L, N)
        return Distillation(l1, -F.logsigmoid(similarity).sum(dim=1), similarity.detach().sum(dim=1))
