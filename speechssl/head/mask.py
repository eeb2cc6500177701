"""Heads that give masks on the bins of a transform.

B batch, N sources, T frames, F bins, D width.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from speechssl.head.recurrent import BidirectionalLSTM

Kind = Literal["blstm", "linear"]
"""'blstm' is SUPERB's; 'linear' shows what the frames alone hold."""
Activation = Literal["sigmoid", "relu"]


class MaskHead(nn.Module):
    """Bidirectional LSTM layers with dropout after each, a linear layer to N masks, and an activation.

    Paper: Kolbaek et al. 2017, sec. IV, arXiv:1703.06284; S3PRL `downstream/separation_stft2/model.py`, `SepRNN`.
    """

    def __init__(
        self,
        size: int,
        bins: int,
        *,
        sources: int,
        kind: Kind,
        num_layers: int,
        hidden_size: int,
        dropout: float,
        activation: Activation,
        frame_rate: float,
    ) -> None:
        """
        Args:
            size: D.
            bins: F.
            sources: N.
            hidden_size: of each direction.
            frame_rate: of the upstream, Hz; kept for aligning its frames.
        """
        super().__init__()
        self.frame_rate = frame_rate
        self.sources = sources
        widths = [size] + [2 * hidden_size] * (num_layers if kind == "blstm" else 0)
        self.layers = nn.ModuleList(BidirectionalLSTM(width, hidden_size) for width in widths[:-1])
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(widths[-1], sources * bins)
        self.activation = activation

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D) and valid frames (B,) -> masks (B, N, T, F); beyond the valid frames they have no meaning."""
        for layer in self.layers:
            features = self.dropout(layer(features, lengths))
        scores = self.output(features).float()  # (B, T, N F)
        masks = torch.sigmoid(scores) if self.activation == "sigmoid" else torch.relu(scores)
        return masks.view(*masks.shape[:2], self.sources, -1).transpose(1, 2)
