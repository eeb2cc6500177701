"""Nes2Net and Nes2Net-X: groups of dimensions, each a Res2Net, that are nested in one; no projection comes first.

Frames beyond an utterance are 0 before every convolution and take no part in norms and means: batch = single.

B batch, T frames, D width, G outer groups, C width of a group, g inner groups, W width of one of these.
Paper: Liu et al. 2025, arXiv:2504.05657, sec. III; sizes and order as `Liu-Tianchi/Nes2Net_ASVspoof_ITW`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from downstreams.deepfake_detection.backends.config import Nes2NetConfig
from downstreams.deepfake_detection.backends.norm import frame_norm
from downstreams.deepfake_detection.backends.window import fit_frames
from downstreams.deepfake_detection.head import Detector
from speechssl.lengths import lengths_to_padding_mask


class Nes2Net(Detector):
    """Each group goes through a block of its own together with what the block before it gave; the last group passes."""

    def __init__(self, size: int, *, config: Nes2NetConfig, window: int | None = None) -> None:
        """
        Args:
            size: D; where the groups don't divide it, zeros fill it up (our choice: 1024 dimensions need none).
            window: frames that utterances are cut or repeated to; None = as they are.
        """
        super().__init__()
        self.window = window
        self.groups = config.groups[0]
        width = -(-size // self.groups)
        self.missing = width * self.groups - size
        self.blocks = nn.ModuleList(_Block(width, config) for _ in range(self.groups - 1))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(self.groups - 1))
        self.last_norm = nn.BatchNorm1d(width * self.groups)
        self.output = nn.Linear(width * self.groups, 2)

    @override
    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        features, lengths = fit_frames(features, lengths, least=1, window=self.window)
        inside = ~lengths_to_padding_mask(lengths, features.size(1))[:, None]  # (B, 1, T)
        parts = (F.pad(features, (0, self.missing)).transpose(1, 2) * inside).chunk(
            self.groups, dim=1
        )  # G of (B, C, T)
        done: list[Tensor] = []
        for part, block, norm in zip(parts, self.blocks, self.norms, strict=False):
            heard = done[-1] + part if done else part
            done.append(frame_norm(norm, F.relu(block(heard, inside)), inside))
        states = F.relu(frame_norm(self.last_norm, torch.cat((*done, parts[-1]), dim=1), inside))  # (B, G C, T)
        return self.output(states.sum(dim=2) / lengths[:, None])  # type: ignore[no-any-return]


class _Block(nn.Module):
    """A Res2Net block with squeeze and excitation; in the form X, every group hears all before it side by side."""

    def __init__(self, size: int, config: Nes2NetConfig) -> None:
        super().__init__()
        self.groups = config.groups[1]
        width = max(1, size // self.groups)
        pad = config.kernel // 2 * config.dilation
        self.enter = nn.Conv1d(size, width * self.groups, 1)
        self.enter_norm = nn.BatchNorm1d(width * self.groups)
        self.convs = nn.ModuleList(
            nn.Conv1d(width, width, config.kernel, dilation=config.dilation, padding=pad)
            for _ in range(self.groups - 1)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(self.groups - 1))
        self.shares = nn.ParameterList(
            nn.Parameter(torch.full((number + 2,), 1 / (number + 2)))
            for number in range(self.groups - 1 if config.extended else 0)
        )
        self.leave = nn.Conv1d(width * self.groups, size, 1)
        self.leave_norm = nn.BatchNorm1d(size)
        squeezed = max(1, size // config.squeeze)
        self.squeeze = nn.Linear(size, squeezed)
        self.excite = nn.Linear(squeezed, size)

    def forward(self, states: Tensor, inside: Tensor) -> Tensor:
        """(B, C, T), 0 beyond the valid frames (B, 1, T) -> the same."""
        parts = frame_norm(self.enter_norm, F.relu(self.enter(states)), inside).chunk(self.groups, dim=1)
        done = self._side_by_side(parts, inside) if self.shares else self._in_turn(parts, inside)
        found = self.leave(torch.cat((*done, parts[-1]), dim=1))
        found = frame_norm(self.leave_norm, F.relu(found), inside)
        mean = found.sum(dim=2) / inside.sum(dim=2)  # (B, C)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(mean))))
        return found * gate[:, :, None] + states  # type: ignore[no-any-return]

    def _in_turn(self, parts: tuple[Tensor, ...], inside: Tensor) -> list[Tensor]:
        """Nes2Net: a group is added to what the one before it became."""
        done: list[Tensor] = []
        for part, conv, norm in zip(parts, self.convs, self.norms, strict=False):
            heard = done[-1] + part if done else part
            done.append(frame_norm(norm, F.relu(conv(heard)), inside))
        return done

    def _side_by_side(self, parts: tuple[Tensor, ...], inside: Tensor) -> list[Tensor]:
        """Nes2Net-X: each joins those before it, one convolution is of all, and learned shares add them up."""
        done = []
        heard = parts[-1][None]  # (1, B, W, T)
        for part, conv, norm, share in zip(parts, self.convs, self.norms, self.shares, strict=False):
            stacked = torch.cat((heard, part[None])).flatten(0, 1)  # (P B, W, T)
            everywhere = inside.repeat(len(heard) + 1, 1, 1)
            normed = frame_norm(norm, F.relu(conv(stacked)), everywhere)
            heard = normed.view(len(share), *part.shape)  # (P, B, W, T)
            done.append((heard * share[:, None, None, None]).sum(dim=0))
        return done
