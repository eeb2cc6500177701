"""Parts of the heads of probes.

B batch, N segments, T frames, D width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from speechssl.data.spans import first_frames
from speechssl.errors import SpeechsslError
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


class TimedHead(nn.Module):
    """A head of segments or of frames, and how long a frame is."""

    def __init__(self, head: nn.Module, frame_rate: float) -> None:
        super().__init__()
        self.head = head
        self.frame_rate = frame_rate


def timed(head: nn.Module) -> TimedHead:
    """The head as what it must be."""
    if not isinstance(head, TimedHead):
        raise SpeechsslError(
            f"A probe of segments or frames needs its own head, but was given a {type(head).__name__}."
        )
    return head


def cut_frames(
    features: Tensor, lengths: Tensor, owners: Sequence[int], spans: Sequence[tuple[float, float]], *, frame_rate: float
) -> tuple[Tensor, Tensor]:
    """The frames whose centres lie in each segment (`spans.first_frames`); the next one, where none does.

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
    seconds = np.array(spans, dtype=np.float64).reshape(-1, 2)
    places = torch.from_numpy(first_frames(seconds, frame_rate)).to(rows)  # (N, 2)
    most = lengths.to(rows)[rows]  # (N,)
    begin = torch.minimum(places[:, 0], most - 1)
    end = torch.minimum(torch.maximum(places[:, 1], begin + 1), most)
    sizes = end - begin
    steps = torch.arange(int(sizes.max()), device=features.device)
    inside = steps < sizes[:, None]  # (N, T')
    columns = torch.where(inside, begin[:, None] + steps, 0)
    cut = features[rows[:, None], columns]  # (N, T', D)
    return cut.masked_fill(~inside[:, :, None], 0.0), sizes
