"""What finished systems are tested under: one thing at a time that happens to recordings on their way.

S samples. Every disturbance keeps the words. Strengths are choices of ours where no standard names one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import librosa
import torch
from torch import Tensor

from speechssl.augment.additive import add_noise, coloured_noise
from speechssl.augment.codec import code, compression_for
from speechssl.augment.reverb import reverberate

LOW_RATE = 16.0  # kbit/s
TRIM_DB = 20.0  # below the loudest frame
SHIFT = 0.1  # seconds
PAD = 0.5  # seconds


@dataclass(frozen=True)
class Disturbance:
    """One condition of a test."""

    about: str
    """In a few words."""
    apply: Callable[[Tensor, int, torch.Generator], Tensor]
    """(S,) in [-1, 1], Hz, and a generator on the CPU -> (S',) in [-1, 1]."""


def _noise(snr_db: float) -> Callable[[Tensor, int, torch.Generator], Tensor]:
    def apply(waveform: Tensor, sample_rate: int, generator: torch.Generator) -> Tensor:
        del sample_rate
        noise = coloured_noise(waveform[None], generator=generator)
        return add_noise(waveform[None], _length(waveform), noise, snr_db=torch.tensor([snr_db]))[0]

    return apply


def _reverberate(waveform: Tensor, sample_rate: int, generator: torch.Generator) -> Tensor:
    rt60, wet = torch.tensor([0.6]), torch.tensor([0.5])
    length = _length(waveform)
    return reverberate(waveform[None], length, sample_rate=sample_rate, rt60=rt60, wet=wet, generator=generator)[0]


def _coded(codec: str) -> Callable[[Tensor, int, torch.Generator], Tensor]:
    def apply(waveform: Tensor, sample_rate: int, generator: torch.Generator) -> Tensor:
        del generator
        level = None if codec == "narrowband" else compression_for(codec, LOW_RATE)
        return code(waveform, codec, sample_rate=sample_rate, compression=level)

    return apply


def _trim(waveform: Tensor, sample_rate: int, generator: torch.Generator) -> Tensor:
    del sample_rate, generator
    first, last = librosa.effects.trim(y=waveform.numpy(), top_db=TRIM_DB, frame_length=320, hop_length=160)[1]
    return waveform[first:last]


def _scale(decibels: float) -> Callable[[Tensor, int, torch.Generator], Tensor]:
    def apply(waveform: Tensor, sample_rate: int, generator: torch.Generator) -> Tensor:
        del sample_rate, generator
        return waveform * 10 ** (decibels / 20)

    return apply


def _pad(before: float, after: float) -> Callable[[Tensor, int, torch.Generator], Tensor]:
    def apply(waveform: Tensor, sample_rate: int, generator: torch.Generator) -> Tensor:
        del generator
        return torch.nn.functional.pad(waveform, (round(before * sample_rate), round(after * sample_rate)))

    return apply


def _length(waveform: Tensor) -> Tensor:
    return torch.tensor([waveform.numel()])


CLEAN = "clean"
DISTURBANCES: dict[str, Disturbance] = {
    CLEAN: Disturbance("as it is", _scale(0.0)),
    "narrowband": Disturbance("sampled at 8 kHz, mu-law", _coded("narrowband")),
    "mp3": Disturbance(f"mp3, about {LOW_RATE:g} kbit/s", _coded("mp3")),
    "opus": Disturbance(f"Opus, about {LOW_RATE:g} kbit/s", _coded("opus")),
    "noise_20": Disturbance("coloured noise, 20 dB below the speech", _noise(20.0)),
    "noise_10": Disturbance("coloured noise, 10 dB below the speech", _noise(10.0)),
    "noise_5": Disturbance("coloured noise, 5 dB below the speech", _noise(5.0)),
    "reverberation": Disturbance("echo of 0.6 s, 3 dB below the direct sound", _reverberate),
    "trimmed": Disturbance(f"ends {TRIM_DB:g} dB below the loudest frame cut off", _trim),
    "louder": Disturbance("10 dB louder, clipped at full scale", _scale(10.0)),
    "softer": Disturbance("20 dB softer, in the same 16 bits", _scale(-20.0)),
    "delayed": Disturbance(f"{SHIFT:g} s of zeros before it", _pad(SHIFT, 0.0)),
    "padded": Disturbance(f"{PAD:g} s of zeros after it", _pad(0.0, PAD)),
}
"""Condition -> what is done."""


def disturb(waveform: Tensor, condition: str, *, sample_rate: int, generator: torch.Generator) -> Tensor:
    """(S,) in [-1, 1] under one condition, clipped at full scale, (S',)."""
    return DISTURBANCES[condition].apply(waveform, sample_rate, generator).clamp(-1.0, 1.0)
