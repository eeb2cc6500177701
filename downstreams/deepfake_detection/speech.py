"""Whether a recording holds speech that can be judged at all.

S samples, T frames.
"""

import torch
from torch import Tensor

from downstreams.deepfake_detection.conditioning import SAMPLE_RATE, frame_levels, speech_bounds

SILENT_DB = -75.0
"""A recording whose loudest 20 ms are below this, dB of full scale, is silence."""
LEAST = 0.1
"""Seconds between silences; less can't be judged."""
VOICED_FRAME = 640  # samples: 40 ms, two periods of 50 Hz
PITCHES = (60, 400)  # Hz
PERIODICITY = 0.4
"""Correlation of a frame with itself one period later, from which on it is voiced; white noise stays near 0.2."""
VOICED_SHARE = 0.02
"""Of the loud frames; where fewer are voiced there is no speech."""


def why_not(waveform: Tensor, trim_db: float) -> str:
    """What keeps (S,), from `without_offset`, from being judged, as the end of a sentence; '' = nothing does."""
    levels = frame_levels(waveform)
    if not levels.numel() or float(levels.max()) < SILENT_DB:
        return "is silent: give a recording of speech"
    first, last = speech_bounds(waveform, trim_db)
    if last - first < LEAST * SAMPLE_RATE:
        seconds = (last - first) / SAMPLE_RATE
        return f"holds {seconds:.2f} s of sound between silences, and less than {LEAST} s can't be judged: give more"
    if voiced_share(waveform[first:last], trim_db) < VOICED_SHARE:
        return "holds no voiced sound, so no speech that could be judged: give a recording of speech"
    return ""


def voiced_share(waveform: Tensor, trim_db: float) -> float:
    """The share of the loud frames of (S,) that repeat themselves within the pitches of voices."""
    padded = torch.nn.functional.pad(waveform, (0, max(0, VOICED_FRAME - waveform.numel())))
    frames = padded.unfold(0, VOICED_FRAME, VOICED_FRAME // 2)  # (T, 640)
    power = frames.square().mean(dim=1)
    frames = frames[power >= power.max() * 10 ** (-trim_db / 10)]
    frames = frames - frames.mean(dim=1, keepdim=True)
    shortest, longest = (round(SAMPLE_RATE / pitch) for pitch in reversed(PITCHES))
    spectrum = torch.fft.rfft(frames, n=2 * VOICED_FRAME)
    correlation = torch.fft.irfft(spectrum.abs().square(), n=2 * VOICED_FRAME)[:, : longest + 1]  # (T, lags)
    # Of two stretches that overlap by less than the frame, each of its own energy.
    energy = torch.nn.functional.pad(frames.square().cumsum(dim=1), (1, 0))  # (T, 641)
    lags = torch.arange(longest + 1)
    head = energy[:, VOICED_FRAME - lags]
    tail = energy[:, -1:] - energy[:, lags]
    periodicity = correlation / (head * tail).clamp(min=1e-20).sqrt()
    return float((periodicity[:, shortest:].max(dim=1).values >= PERIODICITY).float().mean())
