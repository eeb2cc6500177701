"""Micro-batches of waveforms with their frame labels, read ahead of the computation.

B batch, S samples, T label frames. A crop is a function of (seed, epoch, utterance id) alone.
"""

import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from speechssl.audio import read_audio
from speechssl.data.batching import Batch, make_generator
from speechssl.errors import SpeechsslError
from speechssl.objective import PretrainInputs
from speechssl.targets.labels import LabelSet
from speechssl.types import Utterance

logger = logging.getLogger(__name__)
ROUNDING = 0.05
"""Seconds by which labels may be shorter or longer than the audio: front-ends drop what fills no frame."""
AHEAD = 4
"""Micro-batches read ahead."""
SCALE = 2.0**15


@dataclass(frozen=True)
class TrainBatch:
    """One micro-batch."""

    origin: Batch
    inputs: PretrainInputs
    audio_seconds: float
    """Of the utterances, without padding."""


@dataclass(frozen=True)
class CropConfig:
    """Which part of each utterance is used."""

    sample_rate: int
    """Hz."""
    frame_rate: float
    """Of the upstream, Hz: crops begin on a frame."""
    min_seconds: float
    max_seconds: float
    seed: int
    grid_seconds: float | None = None
    """Crops last a multiple of this, and all of a batch as long as its shortest; None = each as long as it can be."""


class PretrainDataset(Dataset[TrainBatch]):
    """Reads and crops; indexed by `Batch`, so that one item is one micro-batch."""

    def __init__(
        self, utterances: Sequence[Utterance], label_sets: Sequence[LabelSet], crop: CropConfig, *, cache_gb: float
    ) -> None:
        """
        Args:
            utterances: with durations; those without labels or below `crop.min_seconds` are left out and counted.
            label_sets: their rates may differ; empty for an objective that makes its own targets.

        Raises:
            SpeechsslError: labels that don't fit the audio, or nothing left.
        """
        self.crop = crop
        self.label_rates = [s.label_rate for s in label_sets]
        codes = [s.by_id() for s in label_sets]
        self.utterances = _usable(utterances, codes, crop)
        self.codes = [[c[u.id] for u in self.utterances] for c in codes]
        self.align = _alignment(crop, self.label_rates)
        for rate, rows in zip(self.label_rates, self.codes, strict=True):
            _check_fit(self.utterances, rows, rate)
        self.durations = [_crop_seconds(_duration(u), crop) for u in self.utterances]
        size = sum(_duration(u) for u in self.utterances) * crop.sample_rate * 2 / 1e9
        self.cached = size <= cache_gb
        self._cache: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, batch: Batch) -> TrainBatch:
        limit = self.crop.max_seconds
        if self.crop.grid_seconds is not None:
            limit = min(self.durations[index] for index in batch.indices)
        rows = [self._row(index, batch.epoch, limit) for index in batch.indices]
        lengths = torch.tensor([len(w) for w, _ in rows])
        waveform = torch.zeros(len(rows), int(lengths.max()))
        for target, (row, _) in zip(waveform, rows, strict=True):
            target[: len(row)] = row
        codes = [_hold_last([c[number] for _, c in rows]) for number in range(len(self.codes))]
        seconds = float(lengths.sum()) / self.crop.sample_rate
        return TrainBatch(batch, PretrainInputs(waveform, lengths, tuple(codes)), seconds)

    def _row(self, index: int, epoch: int, limit: float) -> tuple[Tensor, list[Tensor]]:
        """The waveform (S,) float32 of at most `limit` seconds, and its codes, one tensor per label set."""
        crop = self.crop
        total = round(_duration(self.utterances[index]) * crop.sample_rate)
        size = min(total, round(limit * crop.sample_rate))
        start = 0
        if size < total:
            generator = make_generator(crop.seed, "crop", epoch, self.utterances[index].id)
            start = int(torch.randint((total - size) // self.align + 1, (1,), generator=generator)) * self.align
        waveform = self._read(index, start, size)
        codes = []
        for rate, rows in zip(self.label_rates, self.codes, strict=True):
            first = round(start * rate / crop.sample_rate)
            codes.append(rows[index][first : first + math.ceil(size * rate / crop.sample_rate)])
        return waveform, codes

    def _read(self, index: int, start: int, size: int) -> Tensor:
        utterance, rate = self.utterances[index], self.crop.sample_rate
        if not self.cached:
            begin = utterance.start + start / rate
            return read_audio(utterance.path, sample_rate=rate, start=begin, duration=size / rate)
        if index not in self._cache:
            whole = read_audio(utterance.path, sample_rate=rate, start=utterance.start, duration=utterance.duration)
            self._cache[index] = (whole * SCALE).round_().clamp_(-SCALE, SCALE - 1).to(torch.int16)
        return self._cache[index][start : start + size].float() / SCALE


def load_batches(dataset: PretrainDataset, stream: Iterable[Batch], *, num_workers: int) -> Iterator[TrainBatch]:
    """Yields micro-batches in the order of `stream`, read ahead by a thread (cached corpora) or by processes."""
    if num_workers > 0 and not dataset.cached:
        # With batch_size None, an item of the sampler may be anything that the dataset takes as an index.
        loader: Any = DataLoader(
            dataset,
            sampler=cast(Any, stream),
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=AHEAD,
        )
        yield from loader
        return
    batches = iter(stream)
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(dataset.__getitem__, b) for b in islice(batches, AHEAD))
        try:
            while pending:
                item = pending.popleft().result()
                pending.extend(pool.submit(dataset.__getitem__, b) for b in islice(batches, 1))
                yield item
        finally:
            for future in pending:
                future.cancel()


def _usable(utterances: Sequence[Utterance], codes: Sequence[dict[str, Tensor]], crop: CropConfig) -> list[Utterance]:
    labelled = [u for u in utterances if all(u.id in c for c in codes)]
    kept = [u for u in labelled if _duration(u) >= crop.min_seconds]
    if len(labelled) < len(utterances):
        logger.warning(
            "%d of %d utterances have no labels and are left out.", len(utterances) - len(labelled), len(utterances)
        )
    if len(kept) < len(labelled):
        short = [_duration(u) for u in labelled if _duration(u) < crop.min_seconds]
        logger.warning(
            "%d utterances (%.0f s) are shorter than min_seconds=%g s and are left out.",
            len(short),
            sum(short),
            crop.min_seconds,
        )
    if not kept:
        raise SpeechsslError(
            f"None of {len(utterances)} utterances is labelled and at least {crop.min_seconds} s long: "
            "lower `min_seconds`, or run `speechssl cluster` on this split."
        )
    return kept


def _duration(utterance: Utterance) -> float:
    if utterance.duration is None:
        raise SpeechsslError(f"Utterance '{utterance.id}' has no duration: give one in the manifest.")
    return utterance.duration


def _crop_seconds(duration: float, crop: CropConfig) -> float:
    """How much of an utterance is used at most, seconds."""
    seconds = min(duration, crop.max_seconds)
    if crop.grid_seconds is None or seconds < crop.grid_seconds:
        return seconds
    return math.floor(seconds / crop.grid_seconds + 1e-6) * crop.grid_seconds


def _alignment(crop: CropConfig, label_rates: Sequence[float]) -> int:
    """Samples that both a frame of the upstream and a label of every set begin on."""
    hops = [crop.sample_rate / rate for rate in (crop.frame_rate, *label_rates)]
    if any(h != round(h) for h in hops):
        raise SpeechsslError(f"Frame and label rates must divide the sample rate, but the hops are {hops} samples.")
    return math.lcm(*(round(h) for h in hops))


def _check_fit(utterances: Sequence[Utterance], codes: Sequence[Tensor], rate: float) -> None:
    for utterance, row in zip(utterances, codes, strict=True):
        if len(row) == 0 or abs(len(row) / rate - _duration(utterance)) > ROUNDING:
            raise SpeechsslError(
                f"The labels of '{utterance.id}' last {len(row) / rate:.2f} s, its audio {_duration(utterance):.2f} s: "
                "run `speechssl cluster` again on this corpus."
            )


def _hold_last(rows: Sequence[Tensor]) -> Tensor:
    """Stacks (T_i,) codes into (B, max T) int64, each row continued with its last code."""
    size = max(len(r) for r in rows)
    return torch.stack([torch.cat((r, r[-1:].expand(size - len(r)))) for r in rows]).long()
