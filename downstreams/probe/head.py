"""Parts of the heads of probes.

B batch, N segments, T frames, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechssl.head.standardise import Standardise, batch_norm
from speechssl.head.utterance import NEEDS_FRAMES, Kind, build_utterance_head, mean_over_time


class StandardisedHead(nn.Module):
    """A head whose features have mean 0 and deviation 1: of the batch in training, running in evaluation.

    Heads that see only the mean over time have the mean brought there, so that they give the same from pooled arrays.
    """

    def __init__(self, kind: Kind, size: int, outputs: int, *, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.frames = Standardise(size) if kind in NEEDS_FRAMES else None
        self.norm = None if kind in NEEDS_FRAMES else nn.BatchNorm1d(size, affine=False)
        self.head = build_utterance_head(kind, size, outputs, hidden_size=hidden_size, dropout=dropout)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D) or (B, D), and valid frames (B,) -> scores (B, C)."""
        if self.frames is not None and features.dim() == 3:
            features = self.frames(features, lengths)
        if self.norm is not None:
            features = batch_norm(self.norm, mean_over_time(features, lengths))
        return self.head(features, lengths)  # type: ignore[no-any-return]  # nn.Module returns Any


class SegmentHead(nn.Module):
    """A head of segments, and how long a frame is."""

    def __init__(self, head: nn.Module, frame_rate: float) -> None:
        super().__init__()
        self.head = head
        self.frame_rate = frame_rate


def cut_frames(
    features: Tensor, lengths: Tensor, owners: Sequence[int], spans: Sequence[tuple[float, float]], *, frame_rate: float
) -> tuple[Tensor, Tensor]:
    """The frames of each segment, from that nearest to its beginning to that nearest to its end, at least one.

    Args:
        features: (B, T, D).
        lengths: valid frames, (B,).
        owners: row of each of N segments.
        spans: (begin, end) of each, seconds from the first frame.
        frame_rate: Hz.

    Returns:
        (N, T', D), 0 beyond the lengths (N,).
    """
    rows = torch.tensor(list(owners), device=features.device)
    times = torch.tensor(list(spans), dtype=torch.float64, device=features.device).reshape(-1, 2) * frame_rate
    most = lengths.to(rows)[rows]  # (N,)
    begin = torch.minimum(times[:, 0].round().long(), most - 1)
    end = torch.minimum(torch.maximum(times[:, 1].round().long(), begin + 1), most)
    sizes = end - begin
    steps = torch.arange(int(sizes.max()), device=features.device)
    inside = steps < sizes[:, None]  # (N, T')
    places = torch.where(inside, begin[:, None] + steps, 0)
    cut = features[rows[:, None], places]  # (N, T', D)
    return cut.masked_fill(~inside[:, :, None], 0.0), sizes
