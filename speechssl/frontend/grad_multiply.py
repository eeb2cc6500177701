"""Scaling of gradients."""

from typing import Any

import torch
from torch import Tensor


class _GradMultiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.scale, None


def multiply_gradient(x: Tensor, scale: float) -> Tensor:
    """Returns `x` unchanged; its gradient is multiplied by `scale` on the way back.

    Paper: Baevski et al. 2020, sec. 4.2 (features 0.1), arXiv:2006.11477.
    """
    result: Tensor = _GradMultiply.apply(x, scale)  # type: ignore[no-untyped-call]  # untyped in torch
    return result
