"""Brings converted speech to the loudness of the target's own recordings.

The head learns a mean over frames that differ in level, so what it gives back is softer than what it heard.
S samples. Paper: ITU-R BS.1770-4, Algorithms to measure audio programme loudness and true-peak audio level.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import Tensor

PEAK = 10 ** (-1 / 20)
"""Largest sample that is let out: 1 dB below full scale."""
DEEPEST_DB = 8.0
"""Most that the limiter may take off a peak."""
REACH = 0.005  # seconds before and after a peak within which the limiter turns down
ROUNDS = 4
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
    """Brings (S,) to the loudness `wanted` (LUFS), or as near to it as `PEAK` and `DEEPEST_DB` allow.

    Silence, and None for `wanted`, leave the level as it is; the peak holds always.
    """
    peak = float(waveform.abs().max()) if waveform.numel() else 0.0
    if peak == 0.0:
        return waveform
    most = PEAK / peak * 10 ** (DEEPEST_DB / 20)
    gain, matched = 1.0, limit(waveform, sample_rate)
    for _ in range(ROUNDS):  # since the limiter takes a little of the loudness
        own = loudness(matched, sample_rate)
        if own is None or wanted is None:
            break
        gain = min(gain * 10 ** ((wanted - own) / 20), most)
        matched = limit(gain * waveform, sample_rate)
    return matched


def limit(waveform: Tensor, sample_rate: int) -> Tensor:
    """Turns (S,) down around each sample beyond `PEAK`, smoothly and in time, so that none is left; nothing is cut."""
    if float(waveform.abs().max()) <= PEAK:
        return waveform
    reach = round(REACH * sample_rate)
    size = 2 * reach + 1
    gain = (PEAK / waveform.abs().clamp(min=PEAK))[None, None]  # (1, 1, S)
    # The least gain within reach, then a mean over the same reach: at each peak all that is averaged is low enough.
    lowest = -F.max_pool1d(-F.pad(gain, (size - 1, size - 1), value=1.0), size, stride=1)  # (1, 1, S + 2 reach)
    window = torch.hann_window(size + 2, periodic=False)[1:-1]
    smooth = F.conv1d(lowest, (window / window.sum())[None, None])[0, 0]  # (S,)
    return (waveform * smooth).clamp(-PEAK, PEAK)  # the mean is exact but for rounding
