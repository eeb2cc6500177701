"""Batch norm in which padding takes no part, in training too.

B batch, C channels, F bands, T frames.
"""

import torch
from torch import Tensor, nn

from speechssl.lengths import lengths_to_padding_mask


def inside_maps(lengths: Tensor, maps: Tensor) -> Tensor:
    """Valid frames of maps (B, C, F, T), (B, 1, 1, T) bool."""
    return ~lengths_to_padding_mask(lengths, maps.size(3))[:, None, None]


def map_norm(norm: nn.Module, maps: Tensor, inside: Tensor) -> Tensor:
    """Norms the channels of (B, C, F, T) with a `BatchNorm1d`, over bands and valid frames (B, 1, 1, T); 0 beyond."""
    if not norm.training or bool(inside.all()):
        return norm(maps.flatten(2)).view_as(maps) * inside  # type: ignore[no-any-return]  # nn.Module returns Any
    frames = maps.permute(0, 3, 1, 2)  # (B, T, C, F)
    valid = inside[:, 0, 0]  # (B, T)
    normed = norm(frames[valid]).to(frames.dtype)
    return torch.zeros_like(frames).masked_scatter(valid[:, :, None, None], normed).permute(0, 2, 3, 1)


def frame_norm(norm: nn.Module, states: Tensor, inside: Tensor) -> Tensor:
    """Norms the channels of (B, C, T) with a `BatchNorm1d`, over valid frames (B, 1, T) bool; 0 beyond."""
    return map_norm(norm, states[:, :, None], inside[:, :, None])[:, :, 0]
