"""What is not to be found: some frames by none, or for each source frame a stretch of them (its own utterance)."""

from typing import TypeAlias

import torch
from torch import Tensor

Run: TypeAlias = tuple[int, int, int, int]
"""Source frames that share a stretch, first and end, and the stretch's first and end."""


def row_runs(spans: Tensor) -> list[Run]:
    """Of stretches (S, 2), first and end."""
    stretches, counts = torch.unique_consecutive(spans.cpu(), dim=0, return_counts=True)
    ends = counts.cumsum(0)
    return [
        (end - count, end, *stretch)
        for stretch, count, end in zip(stretches.tolist(), counts.tolist(), ends.tolist(), strict=True)
    ]


def hide(scores: Tensor, first: int, size: int, exclude: Tensor | None, runs: list[Run]) -> None:
    """Sets to -inf what is not to be found in the block of `size` frames from `first`."""
    if exclude is not None and exclude.dim() == 1:
        scores[:, :size].masked_fill_(exclude[first : first + size].to(scores.device), float("-inf"))
    for row, end, begin, stop in runs:
        low, high = max(begin - first, 0), min(stop - first, size)
        if low < high:
            scores[row:end, low:high] = float("-inf")
