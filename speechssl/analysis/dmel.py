"""dMel: log-mel energies rounded to a few levels, units that nothing had to be learnt for.

Each of 80 channels is its own codebook, all with the same entries: 40 frames of 80 codes of 4 bits a second.

Two published grids differ. The paper spaces 2^K entries by (M - m) / 2^K from the least energy m of a corpus on, so
that the largest, M, lies a step beyond the last. The authors' package has 2^K entries from -7 to 2, both included,
whatever the corpus: that is the default here (`DMelConfig`), and `paper_entries` makes the other. Energies beyond the
grid take its ends.

B batch, S samples, T frames, M channels, V entries.
Paper: Bai et al. 2024, "dMel: Speech tokenization made simple", sec. 2.1 and table 2, arXiv:2407.15835; the spectrogram
and the range are those of the authors' package `dmel` 1.0.1.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import Tensor

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.frontend.centred_mel import reflect_ends

LEAST = 1e-10
"""Power of a bin, and energy of a channel, at least."""


@dataclass(frozen=True)
class DMelConfig:
    """The spectrogram and the grid; the defaults are those of the authors' package."""

    sample_rate: int = 16_000
    """Hz."""
    window: int = 800
    """Samples, 50 ms; a Hann window."""
    hop: int = 400
    """Samples, 25 ms."""
    fft_size: int = 1024
    num_mel_bins: int = 80
    low_freq: float = 80.0
    """Hz."""
    high_freq: float = 7_600.0
    """Hz."""
    bits: int = 4
    least: float = -7.0
    """The first entry, log10 of the mel magnitude."""
    largest: float = 2.0
    """The last entry."""

    def __post_init__(self) -> None:
        if self.bits < 1 or not self.least < self.largest:
            raise ConfigError(
                f"dMel needs `bits` >= 1 and `least` < `largest`, but has {self.bits}, {self.least}, {self.largest}."
            )

    @property
    def frame_rate(self) -> float:
        """Hz."""
        return self.sample_rate / self.hop

    @property
    def entries(self) -> Tensor:
        """(V,) float32, both ends included."""
        return torch.linspace(self.least, self.largest, 2**self.bits)


def output_lengths(lengths: Tensor, config: DMelConfig = DMelConfig()) -> Tensor:
    """Frames for samples, both (B,) int64; none where there is too little to be reflected at the ends."""
    frames = torch.div(lengths, config.hop, rounding_mode="floor") + 1
    return torch.where(lengths > config.fft_size // 2, frames, 0)


def log_mel(waveform: Tensor, lengths: Tensor | None = None, config: DMelConfig = DMelConfig()) -> Tensor:
    """log10 of the mel magnitudes of centred frames.

    Args:
        waveform: (B, S) in [-1, 1] at `config.sample_rate`.
        lengths: valid samples, (B,) int64; None = all.

    Returns:
        (B, T, M) float32; frames beyond `output_lengths(lengths)` are arbitrary.
    """
    if lengths is None:
        lengths = torch.full((len(waveform),), waveform.size(1), device=waveform.device)
    half = config.fft_size // 2
    if int(lengths.min()) <= half:
        raise SpeechsslError(f"dMel needs more than {half} samples, but an utterance has {int(lengths.min())}.")
    with torch.autocast(waveform.device.type, enabled=False):
        frames = reflect_ends(waveform.float(), lengths, half).unfold(1, config.fft_size, config.hop)  # (B, T, F)
        spectrum = torch.fft.rfft(frames * _window(config).to(waveform.device))
        power = spectrum.real.square() + spectrum.imag.square()
        energy: Tensor = power.clamp(min=LEAST).sqrt() @ _filters(config).to(waveform.device)
        return energy.clamp(min=LEAST).log10()


def discretize(features: Tensor, entries: Tensor) -> Tensor:
    """The nearest entry of each energy, of two as near the lower: (..., M) and ascending (V,) -> (..., M) int64."""
    middles = (entries[1:] + entries[:-1]) / 2
    return torch.bucketize(features.contiguous(), middles.to(features.device))


def undiscretize(codes: Tensor, entries: Tensor) -> Tensor:
    """The energies that codes stand for, (..., M) float32; a vocoder of such frames makes speech of them."""
    return entries.to(codes.device)[codes]


def paper_entries(features: Iterable[Tensor], *, bits: int = 4) -> Tensor:
    """The grid of the paper for a corpus of energies, each (T, M): (V,) from their least on, the largest left out."""
    least, largest = float("inf"), float("-inf")
    for part in features:
        low, high = part.aminmax()
        least, largest = min(least, float(low)), max(largest, float(high))
    if not least < largest:
        raise SpeechsslError("A grid needs energies that differ, but there are none, or all are alike.")
    grid: Tensor = least + (largest - least) / 2**bits * torch.arange(2**bits)
    return grid


@cache
def _window(config: DMelConfig) -> Tensor:
    before = (config.fft_size - config.window) // 2
    window: Tensor = F.pad(torch.hann_window(config.window), (before, config.fft_size - config.window - before))
    return window


@cache
def _filters(config: DMelConfig) -> Tensor:
    """Slaney's scale and norm, as librosa has them, (F / 2 + 1, M)."""
    filters: Tensor = AF.melscale_fbanks(
        config.fft_size // 2 + 1, config.low_freq, config.high_freq, config.num_mel_bins, config.sample_rate,
        norm="slaney", mel_scale="slaney",
    )  # fmt: skip
    return filters
