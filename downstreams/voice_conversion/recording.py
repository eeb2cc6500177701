"""A user's recordings as they come: read in bounded memory, and silence or clipping told.

S samples.
"""

import logging
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchaudio.transforms import Vad

from downstreams.voice_conversion.loudness import loudness
from speechssl.audio import audio_info, read_audio
from speechssl.errors import AudioError
from speechssl.long_audio import Audio
from speechssl.types import Utterance

logger = logging.getLogger(__name__)
PIECE = 60.0
"""Seconds of a long file that are decoded at once."""
QUIETEST = 1e-4
"""Largest sample of what counts as silence: 80 dB below full scale."""
FULL_SCALE = 0.999
CLIPPED = 1e-3
"""Share of samples at full scale above which a recording is called clipped."""
TRIGGER = 7.0
"""Trigger level of the voice activity detector, as kNN-VC sets it."""


@dataclass(frozen=True)
class Recording:
    """A file's speech."""

    path: str
    waveform: Tensor
    """(S,) mono float32."""
    sample_rate: int
    loudness: float
    """LUFS."""

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.waveform) / self.sample_rate

    def trimmed(self) -> "Recording":
        """Without what the detector takes for silence at both ends.

        Raises:
            AudioError: it hears no speech at all.

        Reference: https://github.com/bshall/knn-vc (`get_features` in matcher.py), which trims the target's recordings.
        """
        detector = Vad(sample_rate=self.sample_rate, trigger_level=TRIGGER)
        tail = detector(self.waveform[None])[0]
        heard = detector(tail.flip(0)[None])[0].flip(0) if tail.numel() else tail
        if not heard.numel():
            raise AudioError(f"{self.path} has no speech that a detector hears: leave it out, or don't trim.")
        return replace(self, waveform=heard)


def read_recording(utterance: Utterance, sample_rate: int) -> Recording:
    """Reads a file at `sample_rate` Hz; a long one piece by piece, so that little but the result is held.

    Raises:
        AudioError: it can't be read, or is silent.
    """
    waveform = _read(utterance, sample_rate)
    peak = float(waveform.abs().max())
    level = None if peak < QUIETEST else loudness(waveform, sample_rate)
    if level is None:
        told = "all its samples are 0" if peak == 0.0 else f"its loudest sample is {20 * math.log10(peak):.0f} dB"
        raise AudioError(f"{utterance.path} is silent ({told}): give a recording in which somebody speaks.")
    share = float((waveform.abs() >= FULL_SCALE).float().mean())
    if share > CLIPPED:
        logger.warning(
            "%s is clipped (%.1f %% of its samples are at full scale), which will be heard: record it softer.",
            utterance.path, 100 * share,
        )  # fmt: skip
    return Recording(utterance.path, waveform, sample_rate, level)


def _read(utterance: Utterance, sample_rate: int) -> Tensor:
    seconds = utterance.duration or audio_info(utterance.path).duration - utterance.start
    if seconds <= PIECE:
        return read_audio(utterance.path, sample_rate=sample_rate, start=utterance.start, duration=utterance.duration)
    try:
        audio = Audio(utterance, sample_rate)
    except AudioError:  # of a format that can only be decoded as a whole, or not at all
        return read_audio(utterance.path, sample_rate=sample_rate, start=utterance.start, duration=utterance.duration)
    size = round(PIECE * sample_rate)
    return torch.cat([audio.read(i, min(i + size, audio.samples)) for i in range(0, audio.samples, size)])
