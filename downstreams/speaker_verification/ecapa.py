"""ECAPA-TDNN: dilated convolutions in groups with squeeze and excitation, and attention for each channel.

Padding takes part in nothing: it is 0 before every convolution, as what torch pads with, and left out of every mean,
deviation, softmax and norm. An utterance's embedding therefore doesn't depend on its batch.

B batch, T frames, D width, C channels, P pooled channels, A attention, E embedding.
Paper: Desplanques, Thienpondt and Demuynck 2020, arXiv:2005.07143 (figures 1 and 2, sec. 3); the order convolution,
ReLU, batch norm and the tanh of the attention as `wespeaker/models/ecapa_tdnn.py`, whose sizes it has too.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from speechssl.featurizer.stack import stack_factor, stack_frames
from speechssl.head.standardise import Standardise, batch_norm
from speechssl.lengths import lengths_to_padding_mask

from .config import SpeakerVerificationConfig
from .head import SpeakerHead

DILATIONS = (2, 3, 4)
LEAST = 1e-9
"""Least variance."""


class Ecapa(SpeakerHead):
    """Three SE-Res2Blocks, all of which are heard by the last layer, and attentive statistics of it."""

    def __init__(self, size: int, speakers: int, *, frame_rate: float, config: SpeakerVerificationConfig) -> None:
        """
        Args:
            size: D of the features.
            speakers: N of the training set.
            frame_rate: of the features, Hz; with `config.frame_rate` it decides how many frames are stacked.
        """
        super().__init__(config)
        own = config.ecapa
        self.factor = 1 if config.frame_rate is None else stack_factor(frame_rate, config.frame_rate)
        self.standardise = Standardise(size) if config.standardise else None
        self.first = _Layer(size * self.factor, own.channels, kernel=5)
        self.blocks = nn.ModuleList(
            _Block(own.channels, dilation=d, scale=own.groups, squeezed=own.squeezed) for d in DILATIONS
        )
        self.join = nn.Conv1d(len(DILATIONS) * own.channels, own.pooled, 1)
        self.attention = nn.Sequential(
            nn.Conv1d(3 * own.pooled, own.squeezed, 1), nn.Tanh(), nn.Conv1d(own.squeezed, own.pooled, 1)
        )
        self.pool_norm = nn.BatchNorm1d(2 * own.pooled)
        self.project = nn.Linear(2 * own.pooled, own.embedding)
        self.norm = nn.BatchNorm1d(own.embedding)
        self.classes = nn.Parameter(torch.empty(own.embedding, speakers))
        nn.init.xavier_normal_(self.classes)

    @override
    def embed(self, features: Tensor, lengths: Tensor) -> Tensor:
        if self.standardise is not None:
            features = self.standardise(features, lengths)
        features, lengths = stack_frames(features, lengths, self.factor)
        inside = ~lengths_to_padding_mask(lengths, features.size(1))[:, None]  # (B, 1, T)
        total = self.first(features.transpose(1, 2), inside)  # (B, C, T)
        outputs: list[Tensor] = []
        for block in self.blocks:
            # The sum of all outputs so far is what a block gets, and what it adds to.
            outputs.append(block(total, inside))
            total = total + outputs[-1]
        states = F.relu(self.join(torch.cat(outputs, dim=1)))  # (B, P, T)
        pooled = batch_norm(self.pool_norm, self._pool(states, inside))
        return batch_norm(self.norm, self.project(pooled))

    def _pool(self, states: Tensor, inside: Tensor) -> Tensor:
        """Attentive mean and deviation of each channel, (B, 2 P); the attention sees mean and deviation of all."""
        even = inside.to(states) / inside.sum(dim=2, keepdim=True)  # (B, 1, T)
        context = torch.cat(_statistics(states, even), dim=1)  # (B, 2 P)
        seen = torch.cat((states, context[:, :, None].expand(-1, -1, states.size(2))), dim=1)  # (B, 3 P, T)
        weights = self.attention(seen).masked_fill(~inside, -torch.inf).softmax(dim=2)  # (B, P, T)
        return torch.cat(_statistics(states, weights), dim=1)


class _Layer(nn.Module):
    """A convolution that keeps the frames, ReLU, batch norm; 0 beyond the valid frames."""

    def __init__(self, size: int, channels: int, *, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(size, channels, kernel, dilation=dilation, padding=(kernel - 1) * dilation // 2)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, states: Tensor, inside: Tensor) -> Tensor:
        """(B, D, T), valid frames (B, 1, T) -> (B, C, T)."""
        return frame_norm(self.norm, F.relu(self.conv(states)), inside)


class _Block(nn.Module):
    """A layer, convolutions of groups one after the other, a layer, squeeze and excitation, added to the input."""

    def __init__(self, channels: int, *, dilation: int, scale: int, squeezed: int) -> None:
        super().__init__()
        self.scale = scale
        width = channels // scale
        self.enter = _Layer(channels, channels)
        self.groups = nn.ModuleList(_Layer(width, width, kernel=3, dilation=dilation) for _ in range(scale - 1))
        self.leave = _Layer(channels, channels)
        self.squeeze = nn.Linear(channels, squeezed)
        self.excite = nn.Linear(squeezed, channels)

    def forward(self, states: Tensor, inside: Tensor) -> Tensor:
        """(B, C, T), valid frames (B, 1, T) -> (B, C, T)."""
        parts = self.enter(states, inside).chunk(self.scale, dim=1)
        done = [parts[0]]  # the first group passes as it is
        for number, (part, layer) in enumerate(zip(parts[1:], self.groups, strict=True)):
            done.append(layer(part if number == 0 else part + done[-1], inside))
        found = self.leave(torch.cat(done, dim=1), inside)
        mean = found.sum(dim=2) / inside.sum(dim=2)  # (B, C)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(mean))))
        scaled: Tensor = found * gate[:, :, None]
        return states + scaled


def frame_norm(norm: nn.BatchNorm1d, states: Tensor, inside: Tensor) -> Tensor:
    """Batch norm over valid frames; 0 beyond them.

    Args:
        states: (B, C, T).
        inside: (B, 1, T) bool, True = valid.
    """
    if not norm.training or bool(inside.all()):
        return norm(states) * inside  # type: ignore[no-any-return]  # nn.Module returns Any
    frames = states.transpose(1, 2)  # (B, T, C)
    valid = inside[:, 0]
    normed = batch_norm(norm, frames[valid])
    return torch.zeros_like(frames).masked_scatter(valid[:, :, None], normed.to(frames.dtype)).transpose(1, 2)


def _statistics(states: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and deviation over time: (B, P, T) and weights that sum to 1 over T -> (B, P) each."""
    mean = (weights * states).sum(dim=2)
    variance = (weights * (states - mean[:, :, None]).square()).sum(dim=2)
    return mean, variance.clamp(min=LEAST).sqrt()
