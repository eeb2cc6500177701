"""Reconstruction of features: the absolute error of a prediction.

N frames, or whatever stands in front of the channels; C channels.
"""

import torch
from torch import Tensor

from speechssl.types import LossOutput

RECONSTRUCTION_LIMITS = {"prediction_std": 0.02}
"""Of a healthy run on features of deviation 1: below, all frames are predicted alike."""


def reconstruction_loss(predicted: Tensor, target: Tensor, *, scored: Tensor | None = None) -> LossOutput:
    """Sums the absolute error, averaged over the channels, in float32 whatever the precision of the model.

    Args:
        predicted: (..., C).
        target: (..., C); finite.
        scored: (..., C) or (..., 1) bool, the numbers that count; None = all.

    Returns:
        the loss; the number of scored frames, where each of a frame's numbers counts 1 / C; the moments of predictions
        and of targets over the frames of which any number counts.

    Paper: Liu et al. 2020 (Mockingjay), sec. 2.1, arXiv:1910.12638; Chung et al. 2019 (APC), eq. 1, arXiv:1904.03240.
    """
    with torch.autocast(predicted.device.type, enabled=False):
        predicted, target = predicted.float(), target.float()
        error = (predicted - target).abs()
        counted = torch.ones_like(error) if scored is None else scored.float().expand_as(error)
        width = error.size(-1)
        metrics = {
            "prediction_moments": _moments(predicted.detach(), counted),
            "target_moments": _moments(target.detach(), counted),
        }
        return LossOutput((error * counted).sum() / width, counted.sum() / width, metrics)


def _moments(x: Tensor, counted: Tensor) -> Tensor:
    """See `speechssl.metric.tallies.moments`, without a look at how many frames count: (..., C) -> (3, C) float32."""
    weight = counted.amax(dim=-1, keepdim=True).flatten(0, -2)  # (N, 1)
    x = x.flatten(0, -2)
    return torch.stack((weight.sum().expand(x.size(-1)), (weight * x).sum(dim=0), (weight * x.square()).sum(dim=0)))
