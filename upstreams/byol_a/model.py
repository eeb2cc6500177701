"""BYOL-A: log-mel energies, convolutions that halve time and frequency, two dense layers for each frame.

B batch, S samples, T frames, M mel bands, C channels, D width.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.frontend.centred_mel import CentredMel, CentredMelConfig
from speechssl.lengths import lengths_to_padding_mask
from speechssl.upstream import Upstream
from upstreams.byol_a.config import ByolAConfig

FLOOR = torch.finfo(torch.float32).eps
"""Added to energies before the logarithm."""


class ByolAUpstream(Upstream):
    """A BYOL-A encoder, before its pooling over time.

    Hidden state 0 is the features of the convolutions (mel bands by channels, side by side), 1 and 2 the outputs of the
    dense layers; with `stacked`, 2 begins with hidden state 0.

    Paper: Niizumi et al. 2021, sec. III.B, arXiv:2103.06695.
    """

    name = "byol_a"
    family = "byol_a"

    def __init__(self, config: ByolAConfig) -> None:
        bands = config.num_mel_bins >> config.conv_layers
        if bands < 1:
            raise ConfigError(f"`num_mel_bins` must be at least {2**config.conv_layers}, but is {config.num_mel_bins}.")
        features = config.conv_channels * bands
        mel = CentredMel(
            CentredMelConfig(sample_rate=config.sample_rate, num_mel_bins=config.num_mel_bins, scale=config.mel_scale)
        )
        super().__init__(
            sample_rate=config.sample_rate,
            frame_rate=config.sample_rate / (mel.hop * 2**config.conv_layers),
            hidden_sizes=(features, config.ffn_width, config.width + (features if config.stacked else 0)),
        )
        self.config = config
        self.mel = mel
        inputs = [1] + [config.conv_channels] * (config.conv_layers - 1)
        self.stages = nn.ModuleList(ConvStage(channels, config.conv_channels) for channels in inputs)
        self.encoder = DenseEncoder(features, config)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        return torch.bitwise_right_shift(self.mel.output_lengths(lengths), self.config.conv_layers)

    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        """See `Upstream.compute`."""
        energy = self.mel(waveform, lengths)  # (B, T, M)
        scaled = ((energy + FLOOR).log() - self.config.mean) / self.config.deviation
        x = scaled.to(next(self.parameters()).dtype).transpose(1, 2)[:, None]  # (B, 1, M, T)
        frames = self.mel.output_lengths(lengths)
        for stage in self.stages:
            x = stage(x, frames)
            frames = frames >> 1
        features = x.permute(0, 3, 2, 1).flatten(2)  # (B, T, M C)
        return self.encoder(features, layers=layers)  # type: ignore[no-any-return]  # nn.Module returns Any

    @torch.no_grad()
    def scene_embeddings(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """One vector for each utterance: the mean over time plus the maximum over time of the last hidden state.

        Args:
            waveform: (B, S) float in [-1, 1] at `sample_rate`.
            lengths: valid samples per utterance, (B,) int64; None = all of S.

        Returns:
            (B, D).

        Paper: Niizumi et al. 2021, sec. III.B, arXiv:2103.06695.
        """
        out = self(waveform, lengths, layers=[-1])
        state = out.hidden_states[-1]
        padding = lengths_to_padding_mask(out.lengths, state.size(1))[:, :, None]
        mean: Tensor = state.sum(dim=1) / out.lengths[:, None]  # frames beyond `lengths` are 0
        largest: Tensor = state.masked_fill(padding, -torch.inf).amax(dim=1)
        return mean + largest

    def fingerprint_config(self) -> str:
        """The whole config."""
        return repr(self.config)


class ConvStage(nn.Module):
    """Convolution of 3 x 3, batch norm, ReLU, maximum over 2 x 2."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, 3, padding=1)
        self.norm = FixedBatchNorm(channels)

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        """(B, C, M, T) -> (B, C, M / 2, T / 2), both rounded down; `frames` are the valid ones, (B,) int64."""
        # What follows an utterance must be what follows it alone: the zeros of the convolution's own padding.
        x = x.masked_fill(lengths_to_padding_mask(frames, x.size(3))[:, None, None, :], 0.0)
        return F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)


class FixedBatchNorm(nn.Module):
    """Batch norm with the statistics of pre-training, whatever the mode: those of a padded batch would be others."""

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, M, T) -> (B, C, M, T)."""
        return F.batch_norm(x, self.mean, self.variance, self.weight, self.bias)


class DenseBlock(nn.Module):
    """Dense layer, ReLU, dropout."""

    def __init__(self, inputs: int, width: int, *, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, inputs) -> (B, T, width)."""
        return self.dropout(F.relu(self.linear(x)))  # type: ignore[no-any-return]  # nn.Module returns Any


class DenseEncoder(nn.Module):
    """Two dense layers, and what they heard beside what they made of it."""

    def __init__(self, features: int, config: ByolAConfig) -> None:
        super().__init__()
        self.stacked = config.stacked
        self.blocks = nn.ModuleList(
            (
                DenseBlock(features, config.ffn_width, dropout=config.dropout),
                DenseBlock(config.ffn_width, config.width, dropout=0.0),
            )
        )

    def forward(self, features: Tensor, *, layers: Iterable[int]) -> dict[int, Tensor]:
        """(B, T, M C) -> layer -> (B, T, width of the layer), and nothing above the highest of `layers`."""
        wanted = frozenset(layers)
        states = {0: features}
        for index, block in enumerate(self.blocks):
            if index >= max(wanted):
                break
            states[index + 1] = block(states[index])
        if self.stacked and len(self.blocks) in states:
            states[len(self.blocks)] = torch.cat((features, states[len(self.blocks)]), dim=2)
        return {layer: states[layer] for layer in wanted}


def build(config: ByolAConfig) -> ByolAUpstream:
    """Makes the model with random weights."""
    return ByolAUpstream(config)
