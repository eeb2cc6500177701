"""Linear-frequency cepstral coefficients, as the baselines of ASVspoof have them, for whole padded batches.

Filters and cosine transform are torchaudio's. Its own `transforms.LFCC` is not: with decibels, what it cuts off depends
on the loudest sample of the batch; with logarithms, it adds 1e-6 to energies, which is more than quiet bands hold.

B batch, S samples, T frames, M filters.
Paper: Sahidullah, Kinnunen and Hanilçi 2015, Interspeech; what it leaves open as in `asvspoof-challenge/2021`,
LA/Baseline-LFCC-GMM, and `nii-yamagishilab/project-NN-Pytorch-scripts`, sandbox/util_frontend.py.
"""

from dataclasses import dataclass

import torch
import torchaudio.functional as AF
from torch import Tensor

from speechssl.errors import ConfigError
from speechssl.frontend.log_mel import PREEMPHASIS, FloatTables


@dataclass(frozen=True)
class LfccConfig:
    """The defaults are those of ASVspoof 2019's baseline."""

    num_ceps: int = 20
    num_filters: int = 20
    """Triangles of one width on the linear scale."""
    sample_rate: int = 16_000
    """Hz."""
    window: int = 320
    """Samples per frame, under a Hamming window."""
    hop: int = 160
    """Samples from one frame to the next."""
    fft_size: int = 512
    low_freq: float = 0.0
    """Hz."""
    high_freq: float = 8_000.0
    """Hz."""
    preemphasis: bool = True
    """Whether 0.97 times the sample before is taken from each."""
    energy: bool = False
    """Whether the logarithm of the frame's energy stands in place of coefficient 0."""
    floor: float = 2.0**-52
    """Added to energies before the logarithm."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_ceps <= self.num_filters:
            raise ConfigError(f"`num_ceps` must be 1 to `num_filters` = {self.num_filters}, but is {self.num_ceps}.")
        if not 0 <= self.low_freq < self.high_freq <= self.sample_rate / 2:
            raise ConfigError(
                f"`low_freq` and `high_freq` must lie within 0 and {self.sample_rate / 2:g} Hz, one below the other, "
                f"but are {self.low_freq:g} and {self.high_freq:g}."
            )
        if self.fft_size < self.window:
            raise ConfigError(f"`fft_size` must hold a window of {self.window} samples, but is {self.fft_size}.")


class Lfcc(FloatTables):
    """Power spectrum, linear filters, decimal logarithm, cosine transform; frames lie within the waveform."""

    shape: Tensor
    filters: Tensor
    transform: Tensor

    def __init__(self, config: LfccConfig) -> None:
        super().__init__()
        self.options = config
        self.width = config.num_ceps
        bins = config.fft_size // 2 + 1
        filters = AF.linear_fbanks(bins, config.low_freq, config.high_freq, config.num_filters, config.sample_rate)
        shape = torch.hamming_window(config.window, periodic=False, dtype=torch.float64)
        self.register_buffer("shape", shape, persistent=False)
        self.register_buffer("filters", filters.double(), persistent=False)
        transform = AF.create_dct(config.num_ceps, config.num_filters, norm="ortho")
        self.register_buffer("transform", transform.double(), persistent=False)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        frames = torch.div(lengths - self.options.window, self.options.hop, rounding_mode="floor") + 1
        return frames.clamp(min=0)

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, S) in [-1, 1] -> (B, T, num_ceps), float32; computed in float64."""
        options = self.options
        with torch.autocast(waveform.device.type, enabled=False):
            x = waveform.double()
            if options.preemphasis:
                x = AF.preemphasis(x, PREEMPHASIS)
            frames = x.unfold(1, options.window, options.hop) * self.shape  # (B, T, window)
            power = torch.fft.rfft(frames, n=options.fft_size).abs().square()  # (B, T, bins)
            cepstra = (power @ self.filters + options.floor).log10() @ self.transform  # (B, T, num_ceps)
            if options.energy:
                cepstra[:, :, 0] = (power.sum(dim=2) / options.fft_size + options.floor).log10()
            found: Tensor = cepstra.float()
        return found
