"""Audio of training utterances, read ahead in threads.

S samples.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from speechssl.audio import audio_info, read_audio
from speechssl.types import Utterance

WORKERS = 2
"""Threads."""
SEED = "disturbed by"
"""Label of an utterance whose waveform is to be disturbed: the seed of what is drawn for it."""
Disturb = Callable[[Tensor, int, torch.Generator], Tensor]
"""disturb(waveform (S,), sample rate (Hz), generator) -> (S,)."""
Stretch = tuple[str, float, float | None, int | None]
"""Path, start, duration and seed."""


class Reader:
    """Reads utterances, those that were asked for before without waiting."""

    def __init__(self, sample_rate: int) -> None:
        """
        Args:
            sample_rate: Hz to which audio is brought.
        """
        self.sample_rate = sample_rate
        self.disturb: Disturb | None = None
        """What is done to utterances with the label `SEED`."""
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="speechssl-read")
        self._waiting: dict[Stretch, Future[Tensor]] = {}

    def prefetch(self, utterances: Iterable[Utterance]) -> None:
        """Begins to read."""
        for utterance in utterances:
            stretch = _stretch(utterance)
            if stretch not in self._waiting:
                self._waiting[stretch] = self._pool.submit(self._read, stretch)

    def read(self, utterances: Sequence[Utterance]) -> tuple[Tensor, Tensor]:
        """Returns the waveforms (B, S), 0 beyond the lengths, and the lengths, (B,) int64.

        Raises:
            AudioError: a file that can't be read.
        """
        self.prefetch(utterances)
        stretches = [_stretch(u) for u in utterances]
        found = {stretch: self._waiting.pop(stretch).result() for stretch in dict.fromkeys(stretches)}
        waveforms = [found[stretch] for stretch in stretches]
        padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)  # (B, S)
        return padded, torch.tensor([waveform.numel() for waveform in waveforms])

    def _read(self, stretch: Stretch) -> Tensor:
        path, start, duration, seed = stretch
        waveform = read_audio(path, sample_rate=self.sample_rate, start=start, duration=duration)
        if seed is None or self.disturb is None:
            return waveform
        return self.disturb(waveform, self.sample_rate, torch.Generator().manual_seed(seed))


def _stretch(utterance: Utterance) -> Stretch:
    return utterance.path, utterance.start, utterance.duration, utterance.labels.get(SEED)


def cut(utterances: Sequence[Utterance], *, max_duration: float | None, generator: torch.Generator) -> list[Utterance]:
    """Stretches of `max_duration` seconds, that begin at random, of utterances that are longer."""
    if max_duration is None:
        return list(utterances)
    places = torch.rand(len(utterances), generator=generator, dtype=torch.float64).tolist()
    chosen = []
    for utterance, place in zip(utterances, places, strict=True):
        whole = utterance.duration or audio_info(utterance.path).duration - utterance.start
        start = round(utterance.start + place * (whole - max_duration), 4)
        chosen.append(utterance if whole <= max_duration else replace(utterance, start=start, duration=max_duration))
    return chosen
