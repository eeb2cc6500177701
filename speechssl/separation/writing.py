"""Writes estimates as the user's file was: its sampling rate, its length. N sources, S samples."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr
from torch import Tensor

from speechssl.audio import audio_info, stretch
from speechssl.files import replacing
from speechssl.separation.waveforms import SAMPLE_RATE
from speechssl.types import Utterance


def write_like(
    utterance: Utterance, estimates: Tensor, names: Sequence[str], *, folder: Path, taken: set[str]
) -> list[str]:
    """Writes (N, S) at 16 kHz as N mono WAV files of 32-bit floats, which nothing clips.

    What lies above 8 kHz in a file of a higher rate is not estimated, and is silent.

    Args:
        names: of the N estimates, part of their files' names.
        taken: stems that were used for other files; the one that is used now is added.

    Returns:
        the paths.
    """
    info = audio_info(utterance.path)
    _, size = stretch(Path(utterance.path), utterance.start, utterance.duration, info.sample_rate, info.frames)
    stem = free_stem(Path(utterance.path).stem, taken)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, estimate in zip(names, estimates.numpy(), strict=True):
        samples = estimate
        if info.sample_rate != SAMPLE_RATE:
            samples = soxr.resample(estimate, SAMPLE_RATE, info.sample_rate, quality="HQ")
        samples = np.pad(samples[:size], (0, max(0, size - len(samples))))
        path = folder / f"{stem}-{name}.wav"
        with replacing(path) as partial:
            soundfile.write(str(partial), samples, info.sample_rate, format="WAV", subtype="FLOAT")
        paths.append(str(path))
    return paths


def free_stem(stem: str, taken: set[str]) -> str:
    """The stem, or with '-2', '-3', ... behind it where files of several folders are called alike."""
    free, number = stem, 1
    while free in taken:
        number += 1
        free = f"{stem}-{number}"
    taken.add(free)
    return free
