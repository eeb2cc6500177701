"""Some frames of each row of a batch, taken out and put back.

B batch, T frames, V places for the frames that are taken, N frames taken, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FrameSubset:
    """Which frames of each row are taken; rows that take fewer than others are filled up."""

    chosen: Tensor
    """(B, T) bool."""
    frames: Tensor
    """(B, V) int64, in ascending order; then, to fill up, frames that were not chosen."""
    present: Tensor | None
    """(B, V) bool, False = fills up; None = every row takes V frames."""

    def take(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, V, D); what fills up holds finite numbers of no meaning."""
        return x.gather(1, self.frames[:, :, None].expand(-1, -1, x.size(2)))

    def put(self, y: Tensor, rest: Tensor) -> Tensor:
        """Puts the frames back where they were: (B, V, D), and (B, T, D) for the other frames -> (B, T, D)."""
        place = (self.chosen.cumsum(dim=1) - 1).clamp(min=0)  # (B, T), its number among the chosen
        back = y.gather(1, place[:, :, None].expand(-1, -1, y.size(2)))
        return torch.where(self.chosen[:, :, None], back, rest)

    def rows(self, y: Tensor) -> Tensor:
        """Those that are present, one after the other: (B, V, D) -> (N, D)."""
        return y.flatten(0, 1) if self.present is None else y[self.present]


def frame_subset(chosen: Tensor, size: int, *, equal: bool) -> FrameSubset:
    """Sorts out which frames to take.

    Args:
        chosen: (B, T) bool.
        size: V, at least the most that a row takes; given, so that no value need come back from a GPU.
        equal: whether every row takes V.
    """
    frames = (~chosen).byte().argsort(dim=1, stable=True)[:, :size].contiguous()
    return FrameSubset(chosen, frames, None if equal else chosen.gather(1, frames))
