"""Regression of hidden frames' targets.

N frames, D width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.metric.tallies import MOMENTS, moments
from speechssl.types import LossOutput

REGRESSION_LIMITS = {"target_std": 0.1, "prediction_std": 0.01}
"""Of a healthy run, after fairseq's `min_target_var` and `min_pred_var`, which bound standard deviations too."""


def regression_loss(prediction: Tensor, target: Tensor, *, beta: float = 0.0, scale: float | None = None) -> LossOutput:
    """Squared errors summed over the width and scaled, summed over the frames.

    Args:
        prediction: (N, D).
        target: (N, D).
        beta: below this error smooth L1 loss is squared; 0 = the squared error everywhere.
        scale: None = 1 / sqrt(D).

    Returns:
        the loss; N; the moments of both.

    Paper: Baevski et al. 2022, eq. 2 and sec. 4.2, arXiv:2202.03555; scaled as fairseq does.
    """
    width = target.size(1)
    with torch.autocast(prediction.device.type, enabled=False):
        x, y = prediction.float(), target.float()
        error = F.mse_loss(x, y, reduction="sum") if beta == 0 else F.smooth_l1_loss(x, y, reduction="sum", beta=beta)
    metrics = {f"prediction{MOMENTS}": moments(x), f"target{MOMENTS}": moments(y)}
    size = torch.tensor(float(len(target)), device=target.device)
    return LossOutput(error * (1 / math.sqrt(width) if scale is None else scale), size, metrics)
