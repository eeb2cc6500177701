"""Mel energies of frames that are centred on multiples of the hop, as torchaudio and librosa compute them.

The waveform is reflected at both ends of each utterance, wherever in a batch it ends. Float32, under autocast too.
B batch, S samples, T frames, M mel bands.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import Tensor, nn


@dataclass(frozen=True)
class CentredMelConfig:
    """A power spectrum and triangular filters; the defaults are those of BYOL-A and ATST."""

    sample_rate: int = 16_000
    """Hz."""
    num_mel_bins: int = 64
    window: int = 1024
    """Samples per frame, and of the Fourier transform."""
    hop: int = 160
    """Samples from one frame to the next."""
    low_freq: float = 60.0
    """Hz."""
    high_freq: float = 7_800.0
    """Hz."""
    scale: Literal["htk", "slaney"] = "htk"
    """Of the filters; those of 'slaney' are also divided by their widths, as librosa does."""


class CentredMel(nn.Module):
    """Mel energies; it has no weights, and no tables that a change of type would round."""

    def __init__(self, config: CentredMelConfig) -> None:
        super().__init__()
        self.options = config
        self.hop = config.hop
        self.width = config.num_mel_bins

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64; none where there is too little to be reflected."""
        frames = torch.div(lengths, self.hop, rounding_mode="floor") + 1
        return torch.where(lengths > self.options.window // 2, frames, 0)

    def power(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) -> power spectrum (B, T, window / 2 + 1), float32; frames beyond the valid ones are arbitrary."""
        with torch.autocast(waveform.device.type, enabled=False):
            ends = reflect_ends(waveform.float(), lengths, self.options.window // 2)
            frames = ends.unfold(1, self.options.window, self.hop)  # (B, T, window)
            window = torch.hann_window(self.options.window, device=waveform.device)
            spectrum = torch.fft.rfft(frames * window)
            power: Tensor = spectrum.real.square() + spectrum.imag.square()
            return power

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) -> energies (B, T, M), float32; frames beyond `output_lengths(lengths)` hold arbitrary numbers."""
        with torch.autocast(waveform.device.type, enabled=False):
            power = self.power(waveform, lengths)
            # Products of many rows round otherwise than those of few; that must not show after the logarithm.
            energy: Tensor = power.double() @ _filters(self.options).to(waveform.device)
            return energy.float()


def reflect_ends(waveform: Tensor, lengths: Tensor, padding: int) -> Tensor:
    """Puts `padding` mirrored samples before and after each utterance.

    Args:
        waveform: (B, S).
        lengths: valid samples, (B,) int64, more than `padding`.
        padding: samples.

    Returns:
        (B, S + 2 padding); what follows an utterance's own `lengths + 2 padding` samples is arbitrary.
    """
    size = waveform.size(1)
    if int(lengths.min()) == size:
        return F.pad(waveform[:, None], (padding, padding), mode="reflect")[:, 0]
    place = torch.arange(-padding, size + padding, device=waveform.device).abs()[None, :]
    last = lengths[:, None] - 1
    place = torch.where(place > last, 2 * last - place, place).clamp(0, size - 1)  # (B, S + 2 padding)
    return waveform.gather(1, place)


@cache
def _filters(config: CentredMelConfig) -> Tensor:
    """(window / 2 + 1, M), float64."""
    with torch.inference_mode(mode=False), torch.device("cpu"):  # it outlives whatever calls it first
        filters: Tensor = AF.melscale_fbanks(
            config.window // 2 + 1,
            config.low_freq,
            config.high_freq,
            config.num_mel_bins,
            config.sample_rate,
            norm="slaney" if config.scale == "slaney" else None,
            mel_scale=config.scale,
        )
        return filters.double()
