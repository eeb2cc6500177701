"""What mixtures are made with: trimming, levels, turns.

S samples, N voices. Everything is a function of its arguments; randomness comes from a generator.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from speechssl.errors import SpeechsslError

WINDOW = 0.02  # seconds over which the level is measured when silence is trimmed
SILENT_DB = 40.0  # what is this far below the loudest window counts as silence
PEAK = 0.9
"""Mixtures are scaled down to this, where they are louder (as in LibriMix's `create_librimix_metadata.py`)."""


@dataclass(frozen=True)
class Turn:
    """What one voice says in one go."""

    speaker: str
    waveform: Tensor
    """(S,)."""


def trim_silence(waveform: Tensor, *, sample_rate: int) -> Tensor:
    """Cuts off what is silent at both ends: windows 40 dB below the loudest one; (S,) -> (S',)."""
    size = max(1, round(WINDOW * sample_rate))
    windows = F.pad(waveform, (0, -len(waveform) % size)).view(-1, size)
    levels = windows.square().mean(dim=1)
    loud = (levels > levels.max() * 10 ** (-SILENT_DB / 10)).nonzero()
    if not len(loud):
        return waveform
    return waveform[int(loud[0]) * size : (int(loud[-1]) + 1) * size]


def at_level(waveform: Tensor, decibels: float) -> Tensor:
    """Scales (S,) to a root mean square of `decibels` below full scale.

    Raises:
        SpeechsslError: nothing but zeros.
    """
    power = float(waveform.double().square().mean())
    if power <= 0:
        raise SpeechsslError("A silent waveform can't be brought to a level: leave it out.")
    gain: float = 10 ** (decibels / 20) / power**0.5
    return waveform * gain


def overlay(sources: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Cuts sources to the shortest, scales all alike so that their sum stays within `PEAK`, and rounds to 16 bits.

    Returns:
        mixture (S,) and sources (N, S); the mixture is the sum of the rounded sources, exactly.
    """
    shortest = min(len(source) for source in sources)
    stacked = torch.stack([source[:shortest] for source in sources])  # (N, S)
    peak = max(float(stacked.sum(dim=0).abs().max()), float(stacked.abs().max()))
    stacked = (stacked * min(1.0, PEAK / max(peak, 1e-9)) * 32768).round() / 32768
    return stacked.sum(dim=0), stacked


def converse(
    turns: Sequence[Turn], *, pauses: Sequence[float], sample_rate: int
) -> tuple[Tensor, list[tuple[str, float, float]]]:
    """Puts turns one after the other.

    Args:
        turns: in their order.
        pauses: seconds before each turn, measured from the end of the one before; negative where they overlap. A turn
            never begins before the one before it does.

    Returns:
        the recording (S,), scaled down to `PEAK` where it is louder; and who speaks from when to when, seconds.
    """
    begin, end = 0, 0
    placed: list[tuple[int, Turn]] = []
    for turn, pause in zip(turns, pauses, strict=True):
        begin = max(begin, end + round(pause * sample_rate), 0)
        end = begin + len(turn.waveform)
        placed.append((begin, turn))
    recording = torch.zeros(max(at + len(turn.waveform) for at, turn in placed))
    for at, turn in placed:
        recording[at : at + len(turn.waveform)] += turn.waveform
    recording = recording * min(1.0, PEAK / max(float(recording.abs().max()), 1e-9))
    segments = [(t.speaker, at / sample_rate, (at + len(t.waveform)) / sample_rate) for at, t in placed]
    return recording, segments
