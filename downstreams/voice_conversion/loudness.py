"""Brings converted speech to the loudness of the target's own recordings.

The head learns a mean over frames that differ in level, so what it gives back is softer than what it heard.
S samples. Paper: ITU-R BS.1770-4, Algorithms to measure audio programme loudness and true-peak audio level.
"""

import math
from collections.abc import Iterable

import torch
import torchaudio.functional as AF
from torch import Tensor

PEAK = 10 ** (-1 / 20)
"""Largest sample that is let out: 1 dB below full scale."""
SHORTEST = 0.5  # seconds; the measure's own blocks last 0.4 s
HEADROOM_DB = 20.0


def loudness(waveform: Tensor, sample_rate: int) -> float | None:
    """Loudness of (S,) over its speech (softer blocks are gated out), LUFS; None where all is silence."""
    if not waveform.numel():
        return None
    repeats = math.ceil(SHORTEST * sample_rate / waveform.numel())
    # torchaudio's filters cut what goes beyond full scale, so measure a softer copy.
    softer = waveform.float().repeat(repeats) * 10 ** (-HEADROOM_DB / 20)
    found = float(AF.loudness(softer[None], sample_rate)) + HEADROOM_DB
    return found if math.isfinite(found) else None


def reference_loudness(waveforms: Iterable[Tensor], sample_rate: int) -> float | None:
    """Loudness of several recordings of one speaker, (S,) each, taken as one."""
    return loudness(torch.cat([w.float() for w in waveforms]), sample_rate)


def match_loudness(waveform: Tensor, sample_rate: int, wanted: float | None) -> Tensor:
    """Scales (S,) to the loudness `wanted` (LUFS), or as near to it as no sample beyond `PEAK` allows.

    Silence, and None for `wanted`, leave the level as it is; the peak holds always.
    """
    own = loudness(waveform, sample_rate)
    gain = 1.0 if own is None or wanted is None else 10 ** ((wanted - own) / 20)
    peak = float(waveform.abs().max()) if waveform.numel() else 0.0
    return waveform * (min(gain, PEAK / peak) if peak > 0 else 1.0)
