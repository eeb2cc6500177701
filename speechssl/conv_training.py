"""Convolutions over time with gradients on a CPU, where oneDNN's gradients of weights take twice as long as products.

B batch, T frames, C channels in, D channels out, K frames of the kernel, G groups.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SPAN = 16
"""Taps of a grouped kernel that share one copy of the frames."""


def conv_with_gradients(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int, padding: int, groups: int
) -> Tensor:
    """`speechssl.conv.conv_over_time`; see there."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    y: Tensor = _Convolution.apply(x, weight, bias, stride, padding, groups)  # type: ignore[no-untyped-call]  # untyped in torch
    return y


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  # what apply() takes
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int
    ) -> Tensor:
        flat = weight[:, :, None, :].contiguous(memory_format=torch.channels_last)
        y = F.conv2d(_image(x), flat, bias, stride=(1, stride), padding=(0, padding), groups=groups)
        ctx.save_for_backward(x, flat)
        ctx.biased, ctx.settings = bias is not None, (stride, padding, groups)
        return y.squeeze(2).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, flat = ctx.saved_tensors
        stride, padding, groups = ctx.settings
        grad, kernel = grads[0].contiguous(), flat.size(3)
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_x = torch.ops.aten.convolution_backward(
                _image(grad), _image(x), flat, None, [1, stride], [0, padding], [1, 1], False, [0, 0], groups,
                [True, False, False],
            )[0]  # fmt: skip
            to_x = to_x.squeeze(2).transpose(1, 2)
        if ctx.needs_input_grad[1]:
            if groups == 1:
                to_weight = _dense_gradient(x.contiguous(), grad, kernel, stride)
            else:
                to_weight = _grouped_gradient(x, grad, kernel, padding, groups)
        to_bias = grad.sum(dim=(0, 1)) if ctx.biased else None
        return to_x, to_weight, to_bias, None, None, None


def can_train(x: Tensor, weight: Tensor, *, stride: int, padding: int, groups: int) -> bool:
    """Whether `conv_with_gradients` is for this: a dense strided convolution, or a wide grouped one, on a CPU."""
    kernel = weight.size(2)
    dense = groups == 1 and padding == 0 and stride <= kernel <= 2 * stride
    grouped = groups > 1 and stride == 1 and kernel >= SPAN
    half = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and half and torch.is_grad_enabled() and (dense or grouped)


def _image(x: Tensor) -> Tensor:
    """(B, T, C) -> (B, C, 1, T), a view."""
    return x.transpose(1, 2)[:, :, None, :]


def _dense_gradient(x: Tensor, grad: Tensor, kernel: int, stride: int) -> Tensor:
    """Of weights (D, C, K), for stride <= K <= 2 * stride: `stride` taps see whole rows of frames, the others the next.

    Args:
        x: (B, T, C), contiguous.
        grad: (B, T', D).
    """
    B, T, D = grad.shape
    step, C = x.stride(0), x.size(2)
    parts = []
    for first, taps in ((0, stride), (stride, kernel - stride)):
        if taps:
            rows = x.as_strided((B, T, taps * C), (step, stride * C, 1), x.storage_offset() + first * C)
            products = torch.stack([torch.mm(r.T, g) for r, g in zip(rows, grad, strict=True)])  # (B, taps * C, D)
            parts.append(products.sum(dim=0, dtype=torch.float32).view(taps, C, D))
    return torch.cat(parts).permute(2, 1, 0).to(x.dtype)


def _grouped_gradient(x: Tensor, grad: Tensor, kernel: int, padding: int, groups: int) -> Tensor:
    """Of weights (D, C / G, K), for stride 1: one product per group.

    A tap k is SPAN * j + i: frames are laid out for each i, gradients for each j, and their product has all taps, with
    SPAN + K / SPAN copies of them instead of K.

    Args:
        x: (B, T, C).
        grad: (B, T', D).
    """
    B, T, D = grad.shape
    per_group = x.size(2) // groups
    blocks = -(-kernel // SPAN)
    reach = SPAN * (blocks - 1)
    rows = T + reach
    frames = F.pad(x, (0, 0, padding, rows + SPAN - 1 - x.size(1) - padding))
    frames = frames.view(B, -1, groups, per_group).permute(2, 0, 1, 3).contiguous()  # (G, B, rows + SPAN - 1, C / G)
    shifted = F.pad(grad, (0, 0, reach, reach)).view(B, -1, groups, D // groups).permute(2, 0, 1, 3).contiguous()
    left = frames.as_strided((groups, B, rows, SPAN * per_group), (frames.stride(0), frames.stride(1), per_group, 1))
    outer, step, width = shifted.stride(0), shifted.stride(1), D // groups
    right = shifted.as_strided((groups, B, rows, blocks, width), (outer, step, width, SPAN * width, 1))
    products = [
        torch.mm(a.reshape(B * rows, -1).T, b.reshape(B * rows, -1)) for a, b in zip(left, right, strict=True)
    ]  # each (SPAN * C / G, blocks * D / G), the blocks from the last to the first
    taps = torch.stack(products).view(groups, SPAN, per_group, blocks, width).flip(3)
    return taps.permute(0, 4, 2, 3, 1).reshape(D, per_group, blocks * SPAN)[:, :, :kernel]
