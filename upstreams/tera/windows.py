"""Cuts long utterances into equal parts, as S3PRL's transformers read them.

B batch, T frames, N parts, K frames of the longest, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Parts:
    """Utterances cut into parts."""

    x: Tensor
    """(N, K, ...)."""
    lengths: Tensor
    """Valid frames of each part, (N,) int64, at least 1."""
    places: Tensor | None
    """(N, K) int64, where each frame stood among the B T; None = one part for each utterance."""
    batch: tuple[int, int]
    """(B, T)."""

    def join(self, x: Tensor) -> Tensor:
        """Puts parts (N, K, D) together again: (B, T, D), 0 where there were none."""
        if self.places is None:
            return x
        valid = torch.arange(x.size(1), device=x.device) < self.lengths[:, None]  # (N, K)
        B, T = self.batch
        whole = x.new_zeros(B * T, x.size(2))
        return whole.index_put((self.places[valid],), x[valid]).view(B, T, -1)


def cut_evenly(x: Tensor, lengths: Tensor, most: int) -> Parts:
    """Cuts each utterance of n frames into ceil(n / most) parts of one size, the last of them shorter.

    Args:
        x: (B, T, ...).
        lengths: valid frames, (B,) int64, at least 1.
        most: frames of a part; 0 = no limit.
    """
    B, T = x.shape[:2]
    if most == 0 or most >= T:
        return Parts(x, lengths, None, (B, T))
    count = -(-lengths // most)  # (B,)
    size = -(-lengths // count)
    starts = size[:, None] * torch.arange(int(count.max()), device=lengths.device)  # (B, parts)
    inside = (lengths[:, None] - starts).minimum(size[:, None])
    kept = inside > 0
    steps = torch.arange(int(size.max()), device=lengths.device)
    row = torch.arange(B, device=lengths.device)[:, None, None]
    places = (row * T + (starts[:, :, None] + steps).clamp(max=T - 1))[kept]  # (N, K)
    return Parts(x.flatten(0, 1)[places], inside[kept], places, (B, T))
