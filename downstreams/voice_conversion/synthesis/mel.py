"""The log-mel of S3PRL-VC, its statistics, and what a vocoder reads instead.

Conventions: decimal logarithm of the mel magnitude (not power), floored at 1e-10; Slaney scale and norm; Hann window of
1024 samples; frame t is centred on sample t * 256 of the reflected waveform, so there is one more frame than hops.
Reference: `logmelspectrogram` in S3PRL `downstream/a2o-vc-vcc2020/utils.py`, and scikit-learn's StandardScaler.

B batch, S samples, T frames, M mel bands.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.frontend.centred_mel import CentredMel, CentredMelConfig
from speechssl.moments import Moments
from speechssl.vocoder.mel import FLOOR, MelConfig, mel_filters

RECIPE = MelConfig(sample_rate=24_000, n_fft=1024, hop=256, n_mels=80, low=80.0, high=7_600.0)
"""What a vocoder for this log-mel is trained with: `speechssl vocoder hifigan_v1` with these in `model.mel`."""
DELAY = RECIPE.hop // 2
"""Samples that a vocoder's waveform comes late by: it takes frame t to be centred on (t + 1/2) * 256."""
_LOWEST = 1e-10
_SPECTRUM = CentredMel(
    CentredMelConfig(
        sample_rate=RECIPE.sample_rate, num_mel_bins=RECIPE.n_mels, window=RECIPE.n_fft, hop=RECIPE.hop,
        low_freq=RECIPE.low, high_freq=RECIPE.high, scale="slaney",
    )
)  # fmt: skip


def mel_lengths(lengths: Tensor) -> Tensor:
    """Frames of `lengths` samples at 24 kHz, (B,) int64; none of half a window or less, which can't be reflected."""
    return _SPECTRUM.output_lengths(lengths)


def log10_mel(waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Computes the log-mel of S3PRL-VC.

    Args:
        waveform: (B, S) in [-1, 1] at 24 kHz.
        lengths: valid samples, (B,) int64; None = all.

    Returns:
        (B, T, M); frames beyond `mel_lengths(lengths)` hold arbitrary numbers.

    Raises:
        SpeechsslError: an utterance is not longer than half a window.
    """
    valid = torch.full((len(waveform),), waveform.size(1)) if lengths is None else lengths
    if int(mel_lengths(valid).min()) == 0:
        raise SpeechsslError(f"The log-mel needs more than {RECIPE.n_fft // 2} samples, but an utterance has fewer.")
    magnitude = _SPECTRUM.power(waveform, valid).sqrt()  # (B, T, F)
    return (magnitude @ mel_filters(RECIPE).to(magnitude.device)).clamp(min=_LOWEST).log10()


def fit_statistics(mels: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each band over all frames of the training data.

    Args:
        mels: (T, M) each.

    Returns:
        mean and scale, (M,) each; a band that never changes has scale 1.
    """
    moments = Moments()
    for mel in mels:
        moments.add(mel)
    if moments.count == 0:
        raise SpeechsslError("Statistics need at least one frame of log-mel, but there is none.")
    scale = moments.variance().clamp(min=0.0).sqrt()
    return moments.mean.float(), torch.where(scale > 0, scale, 1.0).float()


def to_vocoder(mel: Tensor, recipe: MelConfig) -> Tensor:
    """Turns log-mel of S3PRL-VC into what a vocoder of this toolkit reads: natural logarithm, floored at 1e-5.

    What the vocoder makes of it comes `DELAY` samples late. The vocoders of ParallelWaveGAN, which S3PRL-VC uses, read
    `(mel - mean) / scale` with statistics of their own instead.

    Args:
        mel: (..., M) as `log10_mel` gives it, not normalised.
        recipe: of the vocoder.

    Returns:
        (..., M).

    Raises:
        ConfigError: the vocoder was trained on another mel.
    """
    if recipe != RECIPE:
        raise ConfigError(f"A vocoder for the log-mel of S3PRL-VC must read {RECIPE}, but this one reads {recipe}.")
    return (mel * math.log(10.0)).clamp(min=math.log(FLOOR))
