"""Fewer, wider frames: neighbours are put side by side, so that heads see every upstream at one frame rate.

B batch, T frames, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from speechssl.errors import ConfigError


def stack_factor(frame_rate: float, target_rate: float) -> int:
    """How many frames at `frame_rate` Hz make one at about `target_rate` Hz; coarser frames stay as they are.

    Raises:
        ConfigError: no whole number of frames comes within 10 % of the target.
    """
    if frame_rate < target_rate:
        return 1
    factor = round(frame_rate / target_rate)
    if abs(frame_rate / factor / target_rate - 1) > 0.1:
        raise ConfigError(
            f"Frames at {frame_rate:g} Hz can't be stacked to {target_rate:g} Hz: choose a rate that divides it."
        )
    return factor


def stack_frames(features: Tensor, lengths: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Puts each `factor` frames side by side; the last group of an utterance is filled up with zeros.

    Args:
        features: (B, T, D), 0 beyond `lengths`.
        lengths: valid frames, (B,) int64.

    Returns:
        (B, ceil(T / factor), factor * D) and the lengths ceil(lengths / factor).
    """
    if factor == 1:
        return features, lengths
    batch, frames, width = features.shape
    features = F.pad(features, (0, 0, 0, -frames % factor))
    stacked = features.reshape(batch, -1, factor * width)  # (B, T/factor, factor * D)
    return stacked, torch.div(lengths + factor - 1, factor, rounding_mode="floor")
