"""The log-mel spectrogram that HiFi-GAN vocoders read.

Conventions: natural logarithm of the mel magnitude (not power), floored at 1e-5; Slaney scale and norm; frames are not
centred, the waveform is padded by (n_fft - hop) / 2 at both ends, so that T frames stand for exactly T * hop samples.
Reference: `mel_spectrogram` in https://github.com/jik876/hifi-gan (meldataset.py).
"""

from dataclasses import dataclass
from functools import cache

import torch
import torchaudio.functional as AF
from torch import Tensor

FLOOR = 1e-5


@dataclass(frozen=True)
class MelConfig:
    """The mel recipe of a vocoder; the defaults are HiFi-GAN V1's at 22.05 kHz."""

    sample_rate: int = 22_050
    """Hz."""
    n_fft: int = 1024
    """Samples; the Hann window is as long."""
    hop: int = 256
    """Samples between frames."""
    n_mels: int = 80
    low: float = 0.0
    """Hz."""
    high: float = 8000.0
    """Hz."""

    @property
    def frame_rate(self) -> float:
        """Frames per second, Hz."""
        return self.sample_rate / self.hop


@cache
def mel_filters(config: MelConfig) -> Tensor:
    """The triangular filters, (n_fft // 2 + 1, n_mels)."""
    filters: Tensor = AF.melscale_fbanks(
        config.n_fft // 2 + 1,
        config.low,
        config.high,
        config.n_mels,
        config.sample_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    return filters


def log_mel(waveform: Tensor, sample_rate: int, config: MelConfig) -> Tensor:
    """Computes log-mel frames.

    Args:
        waveform: (B, S) in [-1, 1] at `sample_rate` Hz; resampled to the vocoder's rate where that differs.

    Returns:
        (B, T, n_mels), T = resampled samples // hop.

    Paper: Kong et al. 2020, HiFi-GAN, arXiv:2010.05646.
    """
    waveform = AF.resample(waveform, sample_rate, config.sample_rate)
    pad = (config.n_fft - config.hop) // 2
    padded = torch.nn.functional.pad(waveform[:, None], (pad, pad), mode="reflect")[:, 0]
    window = torch.hann_window(config.n_fft, device=waveform.device)
    spectrum = torch.stft(padded, config.n_fft, config.hop, window=window, center=False, return_complex=True)
    magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt().transpose(1, 2)  # (B, T, F)
    return (magnitude @ mel_filters(config).to(waveform.device)).clamp(min=FLOOR).log()
