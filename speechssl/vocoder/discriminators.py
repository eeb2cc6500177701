"""Discriminators of waveforms: one that looks at every p-th sample, and one that looks at three time scales.

Shapes: B batch, S samples, C channels.
Reference: https://github.com/jik876/hifi-gan (models.py, MIT).
"""

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

SLOPE = 0.1
PERIODS = (2, 3, 5, 7, 11)
PERIOD_CHANNELS = (32, 128, 512, 1024, 1024)
SCALE_LAYERS = (
    (128, 15, 1, 1), (128, 41, 2, 4), (256, 41, 2, 16), (512, 41, 4, 16), (1024, 41, 4, 16), (1024, 41, 1, 16),
    (1024, 5, 1, 1),
)  # fmt: skip
"""Channels, kernel, stride and groups of each convolution."""

Judgement: TypeAlias = tuple[list[Tensor], list[list[Tensor]]]
"""Scores (B, ...) and feature maps, of each discriminator."""


class PeriodDiscriminator(nn.Module):
    """Sees a waveform as rows of `period` samples, and convolves down the columns alone."""

    def __init__(self, period: int, *, divisor: int = 1) -> None:
        super().__init__()
        self.period = period
        widths = [1, *(c // divisor for c in PERIOD_CHANNELS)]
        strides = [3] * (len(PERIOD_CHANNELS) - 1) + [1]
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (stride, 1), padding=(2, 0)))
            for a, b, stride in zip(widths, widths[1:], strides, strict=False)
        )
        self.conv_post = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, S) -> score (B, ...) and the feature maps."""
        x = F.pad(waveform[:, None], (0, -waveform.size(1) % self.period), mode="reflect")
        x = x.view(x.size(0), 1, -1, self.period)  # (B, 1, S / p, p)
        maps = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)  # (B, C, S', p)
            maps.append(x)
        score = self.conv_post(x)
        return score.flatten(1), [*maps, score]


class ScaleDiscriminator(nn.Module):
    """Strided, grouped convolutions over the samples."""

    def __init__(self, *, spectral: bool, divisor: int = 1) -> None:
        """
        Args:
            spectral: whether weights are divided by their largest singular value, rather than normalised by row.
        """
        super().__init__()
        normed = spectral_norm if spectral else weight_norm
        widths = [1, *(layer[0] // divisor for layer in SCALE_LAYERS)]
        self.convs = nn.ModuleList(
            normed(nn.Conv1d(a, b, kernel, stride, groups=groups, padding=kernel // 2))
            for a, b, (_, kernel, stride, groups) in zip(widths, widths[1:], SCALE_LAYERS, strict=False)
        )
        self.conv_post = normed(nn.Conv1d(widths[-1], 1, 3, padding=1))

    def forward(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, S) -> score (B, ...) and the feature maps."""
        x = waveform[:, None]
        maps = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)  # (B, C, S')
            maps.append(x)
        score = self.conv_post(x)
        return score.flatten(1), [*maps, score]


class Discriminators(nn.Module):
    """The multi-period and the multi-scale discriminator: 41.1 M and 29.6 M parameters.

    Paper: Kong et al. 2020, HiFi-GAN, sec. 2.3, arXiv:2010.05646.
    """

    def __init__(self, *, divisor: int = 1) -> None:
        """
        Args:
            divisor: of all numbers of channels: 1, 2, 4 or 8.
        """
        super().__init__()
        self.periods = nn.ModuleList(PeriodDiscriminator(p, divisor=divisor) for p in PERIODS)
        self.scales = nn.ModuleList(ScaleDiscriminator(spectral=k == 0, divisor=divisor) for k in range(3))

    def forward(self, waveform: Tensor) -> Judgement:
        """(B, S) -> scores and feature maps: those of the periods, then those of the scales."""
        found = [judge(waveform) for judge in self.periods]
        for number, judge in enumerate(self.scales):
            if number > 0:
                waveform = F.avg_pool1d(waveform[:, None], 4, 2, padding=2)[:, 0]
            found.append(judge(waveform))
        return [score for score, _ in found], [maps for _, maps in found]


def add_weight_norm(module: nn.Module) -> None:
    """Puts every convolution of a generator under weight normalisation, as it is trained."""
    for part in list(module.modules()):
        if isinstance(part, nn.Conv1d | nn.ConvTranspose1d) and not torch.nn.utils.parametrize.is_parametrized(part):
            weight_norm(part)
