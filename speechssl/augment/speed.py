"""Speed perturbation: faster or slower speech, with its pitch, as Kaldi and sox `speed` do.

Paper: Ko et al. 2015, "Audio augmentation for speech recognition", Interspeech.
"""

import torchaudio.functional as AF
from torch import Tensor

from speechssl.errors import ConfigError

STEP = 0.01
"""Speeds are multiples of this, so that the ratio of the two sampling rates stays a small fraction."""


def change_speed(waveform: Tensor, speed: float) -> Tensor:
    """Plays a waveform faster (`speed` > 1) or slower: duration / speed, pitch and formants * speed.

    Args:
        waveform: (..., S).
        speed: between 0.5 and 2, a multiple of 0.01.

    Returns:
        (..., ceil(S / speed)).

    Raises:
        ConfigError: another speed.
    """
    percent = round(speed / STEP) if 0.5 <= speed <= 2.0 else 0
    if not percent or abs(percent * STEP - speed) > 1e-6:
        raise ConfigError(f"A speed must lie between 0.5 and 2 and be a multiple of {STEP}, but is {speed}.")
    return AF.resample(waveform, orig_freq=percent, new_freq=100)  # type: ignore[no-any-return]  # untyped
