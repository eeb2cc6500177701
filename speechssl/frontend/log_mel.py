"""Kaldi's spectrogram, log-mel filterbank and MFCC features, batched, with their dynamics and normalisation.

Equal to `torchaudio.compliance.kaldi` utterance by utterance (frames that lie within the waveform only, no dither), for
whole padded batches at once. Everything is computed in float32, under autocast too.
B batch, S samples, T frames, M mel bands, C channels.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.lengths import lengths_to_padding_mask

PREEMPHASIS = 0.97
FLOOR = torch.finfo(torch.float32).eps
"""Least energy before the logarithm, as Kaldi has it."""
LEAST_DEVIATION = 1e-4
"""Of a channel that varies; rounding makes up to 1e-5."""


@dataclass(frozen=True)
class LogMelConfig:
    """Kaldi's defaults: 25 ms frames every 10 ms, a Povey window, mel bands from 20 Hz up."""

    sample_rate: int = 16_000
    """Hz."""
    num_mel_bins: int = 80
    window: int = 400
    """Samples per frame."""
    hop: int = 160
    """Samples from one frame to the next."""
    low_freq: float = 20.0
    """Hz; the upper edge is half of the sample rate."""
    window_type: Literal["povey", "hanning", "hamming"] = "povey"
    """Kaldi's name; 'povey' is the Hann window to the power of 0.85."""
    double: bool = False
    """Computes in float64 up to the logarithm, tables too: float32 is off by 1e-4 in weak bands of steep spectra."""

    @property
    def dtype(self) -> torch.dtype:
        """Of what is computed."""
        return torch.float64 if self.double else torch.float32


class FloatTables(nn.Module):
    """Keeps its tables as they were made, whatever type the model around it is brought to: bfloat16 has no FFT."""

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]  # torch's own hook is untyped
        tables = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # untyped in torch
        for name, table in tables.items():
            setattr(self, name, table.to(getattr(self, name).device))
        return self


class _Spectrum(FloatTables):
    """Frames of a waveform and their power spectrum, as Kaldi computes them."""

    window: Tensor

    def __init__(self, config: LogMelConfig) -> None:
        super().__init__()
        self.options = config
        self.fft_size = 1 << (config.window - 1).bit_length()
        shape = torch.hamming_window if config.window_type == "hamming" else torch.hann_window
        window = shape(config.window, periodic=False, dtype=config.dtype)
        self.register_buffer("window", window.pow(0.85) if config.window_type == "povey" else window, persistent=False)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        frames = torch.div(lengths - self.options.window, self.options.hop, rounding_mode="floor") + 1
        return frames.clamp(min=0)

    def frames(self, waveform: Tensor) -> Tensor:
        """(B, S) -> frames of mean 0, (B, T, window)."""
        frames = waveform.to(self.options.dtype).unfold(1, self.options.window, self.options.hop)
        return frames - frames.mean(dim=2, keepdim=True)

    def power(self, frames: Tensor) -> Tensor:
        """(B, T, window) -> power after pre-emphasis and window, (B, T, fft_size / 2 + 1)."""
        previous = torch.cat((frames[:, :, :1], frames[:, :, :-1]), dim=2)
        spectrum = torch.fft.rfft((frames - PREEMPHASIS * previous) * self.window, n=self.fft_size)
        power: Tensor = spectrum.real.square() + spectrum.imag.square()
        return power


class LogSpectrum(_Spectrum):
    """Kaldi-compatible log power spectrum, with the energy of the frame itself in place of bin 0.

    Paper: Povey et al. 2011, The Kaldi speech recognition toolkit, ASRU (`compute-spectrogram-feats`).
    """

    def __init__(self, config: LogMelConfig) -> None:
        super().__init__(config)
        self.width = self.fft_size // 2 + 1

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, S) in [-1, 1] -> (B, T, fft_size / 2 + 1), float32; a frame's energy counts as 1 at least."""
        with torch.autocast(waveform.device.type, enabled=False):
            frames = self.frames(waveform)
            energy = frames.square().sum(dim=2, keepdim=True).clamp(min=1.0)
            return torch.cat((energy, self.power(frames)[:, :, 1:].clamp(min=FLOOR)), dim=2).log().float()


class LogMel(_Spectrum):
    """Kaldi-compatible log-mel energies.

    Paper: Povey et al. 2011, The Kaldi speech recognition toolkit, ASRU.
    """

    filters: Tensor

    def __init__(self, config: LogMelConfig) -> None:
        super().__init__(config)
        self.width = config.num_mel_bins
        self.register_buffer("filters", mel_filters(config, self.fft_size), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, S) in [-1, 1] -> natural log energies (B, T, M), float32; each frame depends on its own samples only."""
        with torch.autocast(waveform.device.type, enabled=False):
            power = self.power(self.frames(waveform))
            # Products of many rows round otherwise than those of few; that must not show in short, quiet utterances.
            energy: Tensor = power.double() @ self.filters.double()  # (B, T, M)
            return energy.float().clamp(min=FLOOR).log()


class Mfcc(FloatTables):
    """Kaldi-compatible mel-frequency cepstral coefficients, 13 with C0 in place of the energy.

    Paper: Davis and Mermelstein 1980, IEEE Trans. ASSP 28(4); options as Kaldi's `compute-mfcc-feats`.
    """

    transform: Tensor

    def __init__(self, *, num_ceps: int = 13, num_mel_bins: int = 23, lifter: float = 22.0) -> None:
        super().__init__()
        if num_ceps > num_mel_bins:
            raise ConfigError(f"`num_ceps` must be <= num_mel_bins = {num_mel_bins}, but is {num_ceps}.")
        self.width = num_ceps
        self.log_mel = LogMel(LogMelConfig(num_mel_bins=num_mel_bins))
        self.options = self.log_mel.options
        lift = 1.0 + 0.5 * lifter * torch.sin(math.pi * torch.arange(num_ceps) / lifter)  # (num_ceps,)
        self.register_buffer("transform", _dct(num_ceps, num_mel_bins) * lift, persistent=False)  # (M, num_ceps)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        return self.log_mel.output_lengths(lengths)

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, S) in [-1, 1] -> (B, T, num_ceps), float32."""
        with torch.autocast(waveform.device.type, enabled=False):
            cepstra: Tensor = self.log_mel(waveform).double() @ self.transform.double()
            return cepstra.float()


class CorpusNorm(FloatTables):
    """Mean and variance normalisation of frames by statistics of a corpus, which are saved with the weights."""

    mean: Tensor
    deviation: Tensor
    frames: Tensor

    def __init__(self, width: int) -> None:
        """
        Args:
            width: C of the frames; until `fit` they pass as they are.
        """
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.register_buffer("frames", torch.zeros(()))

    @property
    def fitted(self) -> bool:
        """Whether there are statistics."""
        return bool(self.frames > 0)

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Takes the statistics of batches.

        Args:
            batches: frames (B, T, C), and how many are valid, (B,) int64.
        """
        count, total, square = (torch.zeros_like(self.mean, dtype=torch.float64) for _ in range(3))
        for features, lengths in batches:
            padding = lengths_to_padding_mask(lengths, features.size(1))[:, :, None]
            valid = features.double().masked_fill(padding, 0.0)
            count += lengths.sum()
            total += valid.sum(dim=(0, 1))
            square += valid.square().sum(dim=(0, 1))
        mean = total / count
        self.mean.copy_(mean)
        self.deviation.copy_((square / count - mean.square()).clamp(min=1e-8).sqrt())
        self.frames.copy_(count.max())

    def forward(self, features: Tensor) -> Tensor:
        """(..., C) -> (..., C), float32."""
        return (features.float() - self.mean) / self.deviation


def mel_filters(config: LogMelConfig, fft_size: int) -> Tensor:
    """Triangular filters on Kaldi's mel scale, 1127 ln(1 + f / 700), (fft_size / 2 + 1, M)."""
    low, high = _mel(config.low_freq), _mel(config.sample_rate / 2)
    # Otherwise in float32 step by step, as Kaldi: the narrow filters at the bottom feel the rounding.
    steps = torch.arange(config.num_mel_bins + 2, dtype=config.dtype)
    edges = low + steps * ((high - low) / (config.num_mel_bins + 1))  # (M + 2,)
    hertz = config.sample_rate / fft_size * torch.arange(fft_size // 2 + 1, dtype=config.dtype)
    mel = (1127.0 * (1.0 + hertz / 700.0).log())[:, None]  # (fft_size / 2 + 1, 1)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (mel - left) / (centre - left)
    falling = (right - mel) / (right - centre)
    filters = torch.minimum(rising, falling).clamp(min=0.0)
    filters[-1] = 0.0  # Kaldi leaves out the bin at half of the sample rate
    return filters


def _mel(hertz: float) -> float:
    return 1127.0 * math.log1p(hertz / 700.0)


def _dct(num_ceps: int, num_mel_bins: int) -> Tensor:
    """Orthonormal type-II cosine transform, (M, num_ceps)."""
    n = torch.arange(num_mel_bins, dtype=torch.float64)[:, None]
    k = torch.arange(num_ceps, dtype=torch.float64)[None, :]
    matrix = torch.cos(math.pi / num_mel_bins * (n + 0.5) * k) * math.sqrt(2.0 / num_mel_bins)
    matrix[:, 0] = math.sqrt(1.0 / num_mel_bins)
    return matrix.float()


def hold_last_frame(features: Tensor, lengths: Tensor) -> Tensor:
    """Repeats the last valid frame over the padding, so that windows at the end see what they would see alone.

    Args:
        features: (B, T, C).
        lengths: valid frames, (B,) int64, at least 1.

    Returns:
        (B, T, C).
    """
    if int(lengths.min()) == features.size(1):
        return features
    frame = torch.arange(features.size(1), device=features.device)[None, :].clamp(max=lengths[:, None] - 1)  # (B, T)
    return features.gather(1, frame[:, :, None].expand_as(features))


def deltas(features: Tensor, lengths: Tensor, *, window: int = 5) -> Tensor:
    """Slopes of the features over `window` frames, with the edges held.

    Args:
        features: (B, T, C).
        lengths: valid frames, (B,) int64, at least 1.
        window: frames, odd.

    Returns:
        (B, T, C); equal to `torchaudio.functional.compute_deltas` of each utterance alone.
    """
    half = window // 2
    steps = torch.arange(-half, half + 1, device=features.device, dtype=features.dtype)
    kernel = (steps / steps.square().sum())[None, None, :]  # (1, 1, window)
    B, T, C = features.shape
    held = hold_last_frame(features, lengths).transpose(1, 2).reshape(B * C, 1, T)
    padded = F.pad(held, (half, half), mode="replicate")
    return F.conv1d(padded, kernel).view(B, C, T).transpose(1, 2)


def with_deltas(features: Tensor, lengths: Tensor, *, window: int = 5) -> Tensor:
    """Appends first and second deltas: (B, T, C) -> (B, T, 3 C)."""
    with torch.autocast(features.device.type, enabled=False):
        first = deltas(features, lengths, window=window)
        return torch.cat((features, first, deltas(first, lengths, window=window)), dim=2)


def normalize_frames(features: Tensor, lengths: Tensor, *, correction: int = 0) -> Tensor:
    """Cepstral mean and variance normalisation: each channel to mean 0 and deviation 1 over the valid frames.

    A channel that does not vary (digital silence) becomes 0, where others divide rounding noise by itself.

    Args:
        features: (B, T, C).
        lengths: valid frames, (B,) int64, at least 1.
        correction: 1 for the unbiased variance, as S3PRL has it.

    Returns:
        (B, T, C), 0 beyond `lengths`.
    """
    padding = lengths_to_padding_mask(lengths, features.size(1))[:, :, None]  # (B, T, 1)
    count = lengths[:, None, None].to(features.dtype)
    mean = features.masked_fill(padding, 0.0).sum(dim=1, keepdim=True) / count
    centred = (features - mean).masked_fill(padding, 0.0)
    deviation = (centred.square().sum(dim=1, keepdim=True) / (count - correction).clamp(min=1.0)).sqrt()
    return torch.where(deviation > LEAST_DEVIATION, centred / deviation, 0.0)


def standardize_frames(features: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """What `normalize_frames` does, with statistics that are known already.

    Args:
        features: (..., C).
        mean: (C,).
        deviation: (C,).

    Returns:
        (..., C) in the type of `features`.
    """
    normalized = (features - mean) / deviation
    return torch.where(deviation > LEAST_DEVIATION, normalized, 0.0).to(features.dtype)
