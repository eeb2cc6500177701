"""More training speakers: the same recordings at other speeds, each speed a voice of its own.

With few speakers, who speaks can often be told from what is said, or in which language: a head that finds that out
learns nothing about voices. Copies at other speeds have the same words and the same channel, but another speaker label.
Paper: Yamamoto et al. 2019, "Speaker augmentation and bandwidth extension for deep speaker embedding", Interspeech.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from speechssl.audio import read_audio
from speechssl.augment.speed import change_speed
from speechssl.data.flac import SAMPLE_RATE, write_flac
from speechssl.progress import progress
from speechssl.types import Utterance


def with_speeds(utterances: Sequence[Utterance], speeds: Sequence[float], folder: Path) -> list[Utterance]:
    """The utterances, and copies at each speed, whose speakers are named like 'anna@0.9'.

    Args:
        utterances: with the label 'speaker'.
        speeds: such as (0.9, 1.1).
        folder: receives the copies, once; a file that exists is whole.
    """
    result = list(utterances)
    if not speeds:
        return result
    folder.mkdir(parents=True, exist_ok=True)
    with progress("Changing speeds", len(speeds) * len(utterances), unit="files") as advance:
        for speed in speeds:
            for utterance in utterances:
                result.append(_copy(utterance, speed, folder))
                advance(1.0)
    return result


def _copy(utterance: Utterance, speed: float, folder: Path) -> Utterance:
    name = hashlib.sha256(f"{utterance.id} {speed}".encode()).hexdigest()[:20]
    path = folder / f"{name}.flac"
    if not path.exists():
        waveform = read_audio(
            utterance.path, sample_rate=SAMPLE_RATE, start=utterance.start, duration=utterance.duration
        )
        write_flac(path, change_speed(waveform, speed).clamp(-1.0, 1.0).numpy())
    duration = None if utterance.duration is None else utterance.duration / speed
    labels = {**utterance.labels, "speaker": f"{utterance.labels['speaker']}@{speed:g}"}
    return replace(
        utterance, id=f"{utterance.id}@{speed:g}", path=str(path), start=0.0, duration=duration, labels=labels
    )
