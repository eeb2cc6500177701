"""Dasheng: mel energies in decibels, a fixed batch norm, and strips of 40 ms in a vision transformer.

B batch, S samples, T frames, M mel bands.
"""

import torch
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.frontend.centred_mel import CentredMel, CentredMelConfig
from speechssl.lengths import lengths_to_padding_mask
from speechssl.patches.model import PatchUpstream
from upstreams.dasheng.config import DashengConfig

FLOOR = 1e-10
"""Least energy before the logarithm."""
EPS = 1e-5
"""Added to the variances of the batch norm."""


class DecibelMel(nn.Module):
    """Mel energies in decibels, cut off `top_db` below the loudest of the utterance, each band with its batch norm.

    The batch norm keeps the statistics of pre-training, when the model is trained on as well, so that what else is in
    a batch never matters.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, config: DashengConfig) -> None:
        super().__init__()
        self.mel = CentredMel(
            CentredMelConfig(
                sample_rate=config.sample_rate,
                num_mel_bins=config.num_mel_bins,
                window=config.window,
                hop=config.hop,
                low_freq=config.low_freq,
                high_freq=config.high_freq,
            )
        )
        self.hop = config.hop
        self.top_db = config.top_db
        self.weight = nn.Parameter(torch.ones(config.num_mel_bins))
        self.bias = nn.Parameter(torch.zeros(config.num_mel_bins))
        self.register_buffer("mean", torch.zeros(config.num_mel_bins))
        self.register_buffer("variance", torch.ones(config.num_mel_bins))

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        return self.mel.output_lengths(lengths)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) in [-1, 1] -> (B, T, M), float32."""
        decibels = 10.0 * self.mel(waveform, lengths).clamp(min=FLOOR).log10()
        beyond = lengths_to_padding_mask(self.output_lengths(lengths), decibels.size(1))[:, :, None]  # (B, T, 1)
        loudest = decibels.masked_fill(beyond, -torch.inf).amax(dim=(1, 2), keepdim=True)
        decibels = torch.maximum(decibels, loudest - self.top_db)
        scale = self.weight.float() * torch.rsqrt(self.variance.float() + EPS)
        return (decibels - self.mean.float()) * scale + self.bias.float()


class DashengUpstream(PatchUpstream):
    """A Dasheng model.

    Paper: Dinkel et al. 2024, sec. 2, arXiv:2406.06992.
    """

    name = "dasheng"
    family = "dasheng"

    def __init__(self, config: DashengConfig) -> None:
        if config.patch_bands != config.num_mel_bins:
            raise ConfigError(
                f"`patch_bands` must be `num_mel_bins` = {config.num_mel_bins}, since a strip holds all frequencies, "
                f"but is {config.patch_bands}."
            )
        super().__init__(config, DecibelMel(config))


def build(config: DashengConfig) -> DashengUpstream:
    """Makes the model with random weights."""
    return DashengUpstream(config)
