"""The audio that a list of conversions names: read, cut in halves, and given back by a vocoder."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from downstreams.voice_conversion.judges import SAMPLE_RATE
from downstreams.voice_conversion.score_list import Conversion
from speechssl.audio import audio_info, read_audio
from speechssl.errors import AudioError, SpeechsslError
from speechssl.vocoder import Vocoder, log_mel, synthesise

Part = Literal["all", "first half", "second half"]
LEAST = 0.1
"""Seconds that judges can make anything of."""
HALVES = 4.0
"""Seconds that a recording needs to be cut into two of use."""
KEPT = 64
"""Recordings that stay in memory: pairs share sources and targets."""


class Speech:
    """Reads recordings, and gives them back by a vocoder; what was read last stays in memory."""

    def __init__(self, vocoder: Vocoder | None, sample_rate: int | None) -> None:
        """
        Args:
            vocoder: of the upper anchor, which reads log-mel; None = no upper anchor.
            sample_rate: Hz at which recordings are compared; None = the lowest one of the list.
        """
        if vocoder is not None and vocoder.source is not None:
            raise SpeechsslError(
                f"The vocoder '{vocoder.name}' reads features of an upstream, so that it can't give speech back from "
                "log-mel alone: choose another for the upper anchor, or vocoder=none."
            )
        self.vocoder = vocoder
        self.sample_rate = sample_rate
        self.read = lru_cache(maxsize=KEPT)(self._read)
        self.copy = lru_cache(maxsize=KEPT)(self._copy)

    def _read(self, path: Path, rate: int = SAMPLE_RATE, part: Part = "all") -> Tensor:
        """(S,) samples of a recording or a half of it."""
        samples = read_audio(path, sample_rate=rate)
        half = len(samples) // 2
        return {"all": samples, "first half": samples[:half], "second half": samples[half:]}[part]

    def _copy(self, path: Path, rate: int = SAMPLE_RATE, part: Part = "all") -> Tensor:
        """(S,) samples of a recording or a half of it, through log-mel and vocoder."""
        if self.vocoder is None:
            raise SpeechsslError("There is no vocoder to give speech back with.")
        own = self.vocoder.mel.sample_rate
        frames = log_mel(self.read(path, own, part)[None], own, self.vocoder.mel)[0]
        return change_rate(synthesise(self.vocoder, frames).float().cpu(), own, rate)

    def has_halves(self, path: Path) -> bool:
        """Whether a recording is long enough to be cut in two."""
        return audio_info(path).duration >= HALVES

    def common_rate(self, conversions: Sequence[Conversion]) -> int:
        """The rate of comparisons: the lowest one of conversions and parallel recordings, Hz."""
        if self.sample_rate is not None:
            return self.sample_rate
        paths = {p for c in conversions if c.parallel is not None for p in (c.converted, c.parallel)}
        return min(audio_info(path).sample_rate for path in paths)


def change_rate(waveform: Tensor, rate: int, wanted: int) -> Tensor:
    """(S,) at `rate` -> (S',) at `wanted`, Hz."""
    if rate == wanted:
        return waveform
    import soxr

    return torch.from_numpy(soxr.resample(waveform.numpy(), rate, wanted))


def as_array(waveform: Tensor) -> NDArray[np.float64]:
    """(S,) float64."""
    return waveform.double().numpy()


def check_audio(conversions: Sequence[Conversion]) -> None:
    """Reads every header once.

    Raises:
        AudioError: a file that can't be read or is too short, with the line of the list that names it.
    """
    seen: set[Path] = set()
    for conversion in conversions:
        for path, column in conversion.files().items():
            if path in seen:
                continue
            seen.add(path)
            try:
                duration = audio_info(path).duration
            except AudioError as error:
                raise AudioError(f"{conversion.where} names as '{column}' what can't be scored: {error}") from error
            if duration < LEAST:
                raise AudioError(
                    f"{conversion.where} names as '{column}' {path}, which is {duration:.3f} s long: judges need "
                    f"{LEAST} s or more."
                )
