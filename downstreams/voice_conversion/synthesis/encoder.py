"""Encoders of recognition-synthesis: from features at their own rate to states at the rate of the log-mel.

Reference: S3PRL `downstream/a2o-vc-vcc2020/model.py`, where every mel frame takes the feature frame that is nearest
from below (`F.interpolate` without a mode). What acts on single frames is done here before they are repeated.

B batch, T feature frames, T' mel frames, D width of the features, C channels, H hidden.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstreams.voice_conversion.synthesis.config import NetworkConfig
from speechssl.head.recurrent import BidirectionalLSTM
from speechssl.lengths import lengths_to_padding_mask


def resampled_lengths(lengths: Tensor, scale: float) -> Tensor:
    """Mel frames for `lengths` feature frames, (B,) int64."""
    return (lengths.double() * scale).floor().long()


def resample(states: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """Repeats or leaves out frames, exactly as `F.interpolate(mode="nearest")` does with each utterance alone.

    Args:
        states: (B, T, D).
        lengths: valid frames, (B,) int64.
        scale: mel frames per feature frame.

    Returns:
        (B, T', D), T' = resampled_lengths(lengths, scale).max(); what is beyond an utterance repeats its last frame.
    """
    size = int(resampled_lengths(lengths, scale).max())
    numbers = torch.arange(states.size(1), dtype=torch.float32, device=states.device)[None, None]
    places = F.interpolate(numbers, scale_factor=scale)[0, :, :size].long()  # (1, T')
    places = places.minimum(lengths[:, None] - 1)  # (B, T')
    return states.gather(1, places[:, :, None].expand(-1, -1, states.size(2)))


class FeedForwardEncoder(nn.Module):
    """A linear layer and ReLU."""

    def __init__(self, size: int, config: NetworkConfig) -> None:
        super().__init__()
        self.project = nn.Linear(size, config.hidden)

    def forward(self, features: Tensor, lengths: Tensor, scale: float) -> Tensor:
        """(B, T, D) and valid frames (B,) -> (B, T', H)."""
        return resample(F.relu(self.project(features)), lengths, scale)


class Taco2Encoder(nn.Module):
    """A linear layer, convolutions with batch norm, ReLU and dropout, and an LSTM in both directions.

    Padding is 0 before every convolution and takes no part in the statistics, so that an utterance does not depend on
    its batch; in the reference it does.

    Paper: Shen et al. 2018, Tacotron 2, sec. 2.2, arXiv:1712.05884, with a linear layer in place of the characters.
    """

    def __init__(self, size: int, config: NetworkConfig) -> None:
        super().__init__()
        channels, kernel = config.conv_channels, config.conv_kernel
        self.project = nn.Linear(size, channels)
        self.convs = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, padding=kernel // 2, bias=False) for _ in range(config.conv_layers)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for _ in range(config.conv_layers))
        self.dropout = nn.Dropout(config.conv_dropout)
        self.lstm = BidirectionalLSTM(channels, config.hidden // 2)
        for weight in self.convs.parameters():
            nn.init.xavier_uniform_(weight, nn.init.calculate_gain("relu"))

    def forward(self, features: Tensor, lengths: Tensor, scale: float) -> Tensor:
        """(B, T, D) and valid frames (B,) -> (B, T', H); what is beyond the valid frames has no meaning."""
        x = resample(self.project(features), lengths, scale)  # (B, T', C)
        lengths = resampled_lengths(lengths, scale)
        valid = ~lengths_to_padding_mask(lengths, x.size(1))[:, :, None]  # (B, T', 1)
        x = torch.where(valid, x, 0.0)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(x.transpose(1, 2)).transpose(1, 2)
            x = torch.zeros_like(x).masked_scatter(valid, norm(x[valid[:, :, 0]]).to(x.dtype))
            x = self.dropout(F.relu(x))
        return self.lstm(x, lengths)  # type: ignore[no-any-return]  # nn.Module returns Any
