"""Waveforms for pre-training: stretches of utterances and of noise, kept in memory where they fit.

S samples.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speechssl.audio import read_audio
from speechssl.data.indexed import UtteranceIndex
from speechssl.data.seeds import make_generator
from speechssl.errors import AudioError, SpeechsslError

SCALE = 2.0**15
TRIES = 20
"""Others that are tried in place of audio that can't be read."""
UNREADABLE = (AudioError, OSError)


class AudioStore:
    """Reads stretches of an index's utterances at one sampling rate."""

    def __init__(
        self, index: UtteranceIndex, sample_rate: int, *, cache_gb: float, rows: NDArray[np.int32] | None = None
    ) -> None:
        """
        Args:
            sample_rate: Hz; audio at another rate is resampled.
            cache_gb: they are kept as 16-bit samples once read if all take up to this; 10^9 bytes. What is at another
                rate is resampled whole then, and stretch by stretch otherwise: the edges of stretches differ a little.
            rows: those that will be read; None = all.

        Raises:
            SpeechsslError: an utterance without a duration.
        """
        durations = index.durations if rows is None else index.durations[rows]
        unknown = np.flatnonzero(np.isnan(durations))
        if len(unknown):
            number = int(unknown[0] if rows is None else rows[unknown[0]])
            raise SpeechsslError(f"Utterance '{index.ids[number]}' has no duration: give one in the manifest.")
        self.index = index
        self.sample_rate = sample_rate
        self.cached = float(durations.sum()) * sample_rate * 2 / 1e9 <= cache_gb
        self._cache: dict[int, Tensor] = {}

    def size(self, row: int) -> int:
        """Samples of an utterance."""
        return round(float(self.index.durations[row]) * self.sample_rate)

    def read(self, row: int, start: int, size: int) -> Tensor:
        """Samples `start` to `start + size` of an utterance, (S,) float32; up to `audio.OVERRUN` may be lacking.

        Raises:
            AudioError: it can't be read.
        """
        if self.cached:
            if row not in self._cache:
                whole = self._read_file(row, 0, self.size(row))
                self._cache[row] = (whole * SCALE).round_().clamp_(-SCALE, SCALE - 1).to(torch.int16)
            return self._cache[row][start : start + size].float() / SCALE
        return self._read_file(row, start, size)

    def _read_file(self, row: int, start: int, size: int) -> Tensor:
        utterance, rate = self.index.utterance(row), self.sample_rate
        begin = utterance.start + start / rate
        return read_audio(utterance.path, sample_rate=rate, start=begin, duration=size / rate)[:size]


class NoiseStore:
    """Draws noise to be mixed into utterances."""

    def __init__(self, index: UtteranceIndex, sample_rate: int, *, cache_gb: float, seed: int) -> None:
        self._store = AudioStore(index, sample_rate, cache_gb=cache_gb)
        self._seed = seed

    def draw(self, size: int, *name: int | str) -> Tensor:
        """A random stretch of a random clip, (S,) float32, a function of the seed and `name`; a clip that is too short
        goes on from its beginning.

        Raises:
            AudioError: neither this clip nor `TRIES` others can be read.
        """
        reason: Exception | None = None
        for row, generator in self._choices(name):
            total = self._store.size(row)
            used = min(size, total)
            start = int(torch.randint(total - used + 1, (1,), generator=generator))
            try:
                found = self._store.read(row, start, used)
            except UNREADABLE as error:
                reason = error
                continue
            return found.repeat(-(-size // len(found)))[:size]
        raise AudioError(f"{TRIES} clips of noise in a row can't be read: {reason}")

    def _choices(self, name: tuple[int | str, ...]) -> Iterator[tuple[int, torch.Generator]]:
        for attempt in range(TRIES):
            generator = make_generator(self._seed, "noise", attempt, *name)
            yield int(torch.randint(len(self._store.index), (1,), generator=generator)), generator
