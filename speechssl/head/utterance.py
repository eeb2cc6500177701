"""Heads that give one vector of scores per utterance.

B batch, T frames, D width, H hidden width, C classes of all fields together.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.errors import SpeechsslError
from speechssl.head.standardise import batch_norm
from speechssl.lengths import lengths_to_padding_mask

Kind = Literal["linear", "mlp", "attentive"]
"""'linear' is SUPERB's: linear, mean over time, linear. 'mlp': mean over time, a hidden layer with ReLU. 'attentive':
linear, attentive mean and deviation over time, linear."""
NEEDS_FRAMES: frozenset[Kind] = frozenset({"attentive"})
"""The others commute with the mean over time, so that one array per utterance is all that they need."""


def build_utterance_head(kind: Kind, size: int, outputs: int, *, hidden_size: int, dropout: float) -> nn.Module:
    """Makes a head that is called with (B, T, D) or, where it needs no frames, (B, D), and the valid frames (B,).

    Args:
        size: D.
        outputs: C.
        hidden_size: H.
    """
    if kind == "linear":
        return MeanPoolHead(nn.Sequential(nn.Linear(size, hidden_size), nn.Dropout(dropout)), hidden_size, outputs)
    if kind == "mlp":
        return HiddenLayerHead(size, hidden_size, outputs, dropout=dropout)
    return AttentiveHead(size, hidden_size, outputs, dropout=dropout)


def mean_over_time(features: Tensor, lengths: Tensor) -> Tensor:
    """The mean over valid frames: (B, T, D), 0 beyond `lengths` -> (B, D); (B, D) is a mean already."""
    if features.dim() == 2:
        return features
    return features.sum(dim=1) / lengths[:, None].to(features)


class MeanPoolHead(nn.Module):
    """A linear layer, the mean over time, a linear layer: without anything between them that is not linear.

    The mean is taken first, which is the same (to rounding) and T times cheaper.

    Paper: Yang et al. 2021 (SUPERB), table 1, arXiv:2105.01051; S3PRL `downstream/{speech_commands,voxceleb1}`.
    """

    def __init__(self, project: nn.Module, size: int, outputs: int) -> None:
        super().__init__()
        self.project = project
        self.output = nn.Linear(size, outputs)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D) or (B, D), and valid frames (B,) -> scores (B, C)."""
        return self.output(self.project(mean_over_time(features, lengths)))  # type: ignore[no-any-return]


class HiddenLayerHead(nn.Module):
    """The mean over time, batch norm, a hidden layer with ReLU and dropout, a linear layer.

    Paper: Turian et al. 2022 (HEAR), sec. 3, arXiv:2203.03022.
    """

    def __init__(self, size: int, hidden_size: int, outputs: int, *, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(size, hidden_size)
        self.norm = nn.BatchNorm1d(hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_size, outputs)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D) or (B, D), and valid frames (B,) -> scores (B, C)."""
        hidden = batch_norm(self.norm, self.hidden(mean_over_time(features, lengths)))  # (B, H)
        return self.output(self.dropout(F.relu(hidden)))  # type: ignore[no-any-return]


class AttentiveHead(nn.Module):
    """A linear layer, mean and deviation over time weighted by a learned attention, a linear layer.

    Paper: Okabe et al. 2018, eq. 3 to 6, arXiv:1803.10963.
    """

    def __init__(self, size: int, hidden_size: int, outputs: int, *, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(size, hidden_size)
        self.attention = nn.Sequential(
            nn.Linear(hidden_size, hidden_size // 2), nn.Tanh(), nn.Linear(hidden_size // 2, 1)
        )
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(2 * hidden_size, outputs)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D) and valid frames (B,) -> scores (B, C)."""
        if features.dim() == 2:
            raise SpeechsslError("An attentive head needs frames: set `features.pooling` to 'none'.")
        states = F.relu(self.project(features))  # (B, T, H)
        padding = lengths_to_padding_mask(lengths, features.size(1))
        weights = self.attention(states).squeeze(2).float().masked_fill(padding, -torch.inf).softmax(dim=1)  # (B, T)
        mean = torch.einsum("bt,bth->bh", weights, states.float())
        square = torch.einsum("bt,bth->bh", weights, states.float().square())
        deviation = (square - mean.square()).clamp(min=1e-9).sqrt()
        return self.output(self.dropout(torch.cat((mean, deviation), dim=1)))  # type: ignore[no-any-return]
