"""Arithmetic between samples, frames, lengths and padding masks.

`padding_mask` is (B, T) bool, True = padding; `lengths` is (B,) int64.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def conv_output_lengths(lengths: Tensor, layers: Sequence[tuple[int, int]]) -> Tensor:
    """Valid frames after unpadded convolutions: floor((n - kernel) / stride) + 1 per layer, at least 0.

    Args:
        lengths: valid samples, (B,) int64.
        layers: (kernel, stride) of each convolution.
    """
    for kernel, stride in layers:
        lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
    return lengths.clamp(min=0)


def lengths_to_padding_mask(lengths: Tensor, max_length: int | None = None) -> Tensor:
    """Returns (B, T) bool, True at frames >= lengths; T = `max_length` or lengths.max()."""
    size = int(lengths.max()) if max_length is None else max_length
    return torch.arange(size, device=lengths.device)[None, :] >= lengths[:, None]


def padding_mask_to_lengths(padding_mask: Tensor) -> Tensor:
    """Returns the valid frames per row of a (B, T) padding mask, (B,) int64."""
    return (~padding_mask).sum(dim=1)
