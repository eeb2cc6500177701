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
SILENCE = -70.0  # LUFS
PAUSE_DB = 10.0
STRETCH = 300  # blocks that are measured at once: half a minute
LEAD = 1  # seconds


def loudness(waveform: Tensor, sample_rate: int) -> float | None:
    """Loudness of (S,) over its speech (softer blocks are gated out), LUFS; None where all is silence."""
    if not waveform.numel():
        return None
    repeats = math.ceil(SHORTEST * sample_rate / waveform.numel())
    energy = _block_energies(waveform.float().repeat(repeats) if repeats > 1 else waveform.float(), sample_rate)
    heard = energy[_lufs(energy) > SILENCE]
    if not len(heard):
        return None
    # The blocks that are far softer than the mean of what is heard are pauses.
    return float(_lufs(heard[_lufs(heard) > _lufs(heard.mean()) - PAUSE_DB].mean()))


def _lufs(energy: Tensor) -> Tensor:
    """Mean squares of weighted samples -> LUFS."""
    return -0.691 + 10 * energy.log10()


def _block_energies(waveform: Tensor, sample_rate: int) -> Tensor:
    """Mean squares of (S,) after the filters of the standard, in blocks of 0.4 s that overlap by three quarters.

    As in `torchaudio.functional.loudness`, which holds a dozen times the waveform; here it is a stretch at a time.
    """
    size = round(0.4 * sample_rate)
    step = round(size / 4)
    blocks = 1 + (len(waveform) - size) // step
    found = []
    for first in range(0, blocks, STRETCH):
        start, stop = first * step, (min(first + STRETCH, blocks) - 1) * step + size
        before = max(start - LEAD * sample_rate, 0)  # in which the filters forget that they began there
        # torchaudio's filters cut what goes beyond full scale, so they hear a softer copy.
        softer = waveform[before:stop] * 10 ** (-HEADROOM_DB / 20)
        weighted = AF.treble_biquad(softer, sample_rate, 4.0, 1500.0, 1 / math.sqrt(2))
        weighted = AF.highpass_biquad(weighted, sample_rate, 38.0, 0.5)[start - before :].double()
        found.append(weighted.square().unfold(0, size, step).mean(dim=1))
    return torch.cat(found) * 10 ** (HEADROOM_DB / 10)


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
