"""A light vocoder that predicts a spectrum frame by frame and inverts it: Vocos.

It never upsamples, so that a frame costs no more than its own few matrix products.

Shapes: B batch, T frames, M mel bands or width of the features, C width of the network, F frequencies, S samples.
Reference: https://github.com/gemelo-ai/vocos (models.py, heads.py, spectral_ops.py, MIT), with its padding "same":
frames stand where `mel.log_mel` has them.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.vocoder.inputs import FeatureSource
from speechssl.vocoder.mel import MelConfig

LOUDEST = 100.0
"""Largest magnitude that is predicted."""
EPS = 1e-6


@dataclass(frozen=True)
class IstftConfig:
    """The shape of the network; the defaults are those of the paper, 13.5 M parameters at 24 kHz.

    Paper: Siuzdak 2023, Vocos, arXiv:2306.00814, and configs/vocos.yaml there.
    """

    mel: MelConfig = field(default_factory=lambda: MelConfig(sample_rate=24_000, n_mels=100, high=12_000.0))
    """What is read; with `features` only its `sample_rate` and `hop` count, and its `n_fft` is that of the output."""
    features: int | None = None
    """Width of the features that are read in place of log-mel frames; None = log-mel."""
    width: int = 512
    inner: int = 1536
    """Between the two linear layers of a block."""
    blocks: int = 8
    kernel: int = 7
    """Frames that each convolution sees."""

    def __post_init__(self) -> None:
        if self.mel.n_fft < 2 * self.mel.hop or (self.mel.n_fft - self.mel.hop) % 2:
            raise ConfigError(
                f"`mel.n_fft` must be at least twice mel.hop = {self.mel.hop}, and even or odd as it is, but is "
                f"{self.mel.n_fft}: frames must overlap."
            )
        if self.kernel % 2 == 0:
            raise ConfigError(f"`kernel` must be odd, but is {self.kernel}.")


class IstftVocoder(nn.Module):
    """ConvNeXt blocks at the rate of the frames, then log-magnitude and phase of every frequency.

    Paper: Siuzdak 2023, sec. 3, arXiv:2306.00814.
    """

    def __init__(
        self, config: IstftConfig, *, name: str = "iSTFT vocoder", source: FeatureSource | None = None
    ) -> None:
        """
        Args:
            name: for people.
            source: which features it reads; None = log-mel.
        """
        super().__init__()
        self.config = config
        self.name = name
        self.source = source
        self.mel = config.mel
        width = config.mel.n_mels if config.features is None else config.features
        self.embed = nn.Conv1d(width, config.width, config.kernel, padding=config.kernel // 2)
        self.norm = nn.LayerNorm(config.width, eps=EPS)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        self.final_norm = nn.LayerNorm(config.width, eps=EPS)
        self.out = nn.Linear(config.width, config.mel.n_fft + 2)
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Linear) and module is not self.out and module.bias is not None:
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, frames: Tensor) -> Tensor:
        """Synthesises.

        Args:
            frames: log-mel as `mel.log_mel` gives it, or features, (B, T, M).

        Returns:
            (B, T * hop) at `mel.sample_rate`; in [-1, 1], but while training.
        """
        x = self.embed(frames.to(self.out.weight.dtype).transpose(1, 2))  # (B, C, T)
        x = self.norm(x.transpose(1, 2))  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        magnitude, phase = self.out(self.final_norm(x)).float().chunk(2, dim=2)  # (B, T, F) each
        spectrum = torch.polar(magnitude.exp().clamp(max=LOUDEST), phase)
        waveform = inverse_stft(spectrum, self.mel.n_fft, self.mel.hop)  # (B, S)
        return waveform if self.training else waveform.clamp(-1.0, 1.0)


class _Block(nn.Module):
    """ConvNeXt: a convolution over time of each channel by itself, then an inverted bottleneck."""

    def __init__(self, config: IstftConfig) -> None:
        super().__init__()
        width, kernel = config.width, config.kernel
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.expand = nn.Linear(width, config.inner)
        self.contract = nn.Linear(config.inner, width)
        self.scale = nn.Parameter(torch.full((width,), 1.0 / config.blocks))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        change = self.norm(self.depthwise(x.transpose(1, 2)).transpose(1, 2))
        change = self.contract(F.gelu(self.expand(change)))
        summed: Tensor = x + self.scale * change
        return summed


def inverse_stft(spectrum: Tensor, n_fft: int, hop: int) -> Tensor:
    """Inverts a short-time Fourier transform with a Hann window whose frame t is centred on sample (t + 1/2) * hop.

    `torch.istft` inverts only frames that are centred on t * hop.

    Args:
        spectrum: (B, T, n_fft // 2 + 1) complex.
        n_fft: samples of a frame, >= 2 * hop.
        hop: samples between frames.

    Returns:
        (B, T * hop): the least-squares signal of Griffin and Lim 1984.
    """
    frames = torch.fft.irfft(spectrum, n_fft, dim=2).transpose(1, 2)  # (B, n_fft, T)
    window = torch.hann_window(n_fft, device=spectrum.device)[:, None]
    count, pad = spectrum.size(1), (n_fft - hop) // 2
    summed = _overlap_add(frames * window, hop)[:, pad : pad + count * hop]
    weight = _overlap_add(window.square().expand(1, n_fft, count), hop)[:, pad : pad + count * hop]
    return summed / weight


def _overlap_add(frames: Tensor, hop: int) -> Tensor:
    """(B, n_fft, T) -> (B, (T - 1) * hop + n_fft)."""
    size = (frames.size(2) - 1) * hop + frames.size(1)
    return F.fold(frames, (1, size), (1, frames.size(1)), stride=(1, hop))[:, 0, 0]
