"""Micro-batches of waveforms with their frame labels, transcripts and noise, read ahead of the computation.

Crops and noise are functions of (seed, visit, utterance id) alone, where the visit counts how often the run has drawn
the utterance before: the epoch, but where labels are balanced. What can't be read is replaced by another utterance, as
a function of the same, so that a run goes on exactly; the log names it, and too many of them stop the run.

B batch, S samples, T label frames, U tokens.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from speechssl.data.balance import Balance
from speechssl.data.batching import Batch, BatchStream, make_generator
from speechssl.data.indexed import ListedIndex, UtteranceIndex
from speechssl.data.seeds import derive_seed
from speechssl.errors import AudioError
from speechssl.objective import PretrainInputs
from speechssl.targets.labels import LabelSet, UtteranceLabels
from speechssl.train.config import PretrainConfig
from speechssl.train.reading import TRIES, UNREADABLE, AudioStore, NoiseStore
from speechssl.train.selection import CropConfig, TranscriptConfig, alignment, crop_seconds, select
from speechssl.types import Utterance

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BadAudio:
    """An utterance that could not be read."""

    item: int
    """Its number in the dataset."""
    reason: str
    """A sentence."""
    substitute: int
    """The number of the one that took its place."""


@dataclass(frozen=True)
class TrainBatch:
    """One micro-batch."""

    origin: Batch
    inputs: PretrainInputs
    audio_seconds: float
    """Of the utterances, without padding."""
    padded_seconds: float
    """With it."""
    bad: tuple[BadAudio, ...] = ()
    """What was replaced."""
    places: tuple[tuple[int, int], ...] = ()
    """Of each row the utterance that it is of, by number, and where in it it begins, samples."""

    def pin_memory(self) -> "TrainBatch":
        """The same in memory that a GPU fetches from by itself."""
        given = self.inputs
        moved = {
            name: value.pin_memory()
            for name in ("waveform", "lengths", "tokens", "token_lengths", "noise")
            if (value := getattr(given, name)) is not None
        }
        return replace(self, inputs=replace(given, **moved, codes=tuple(c.pin_memory() for c in given.codes)))


@dataclass(frozen=True)
class _Row:
    """One utterance of a batch."""

    waveform: Tensor
    """(S,)"""
    codes: list[Tensor]
    """(T,) of each label set."""
    tokens: list[int]
    noise: Tensor | None
    place: tuple[int, int]
    """Number of the utterance, and where in it the row begins, samples."""
    bad: tuple[BadAudio, ...] = ()


class PretrainDataset(Dataset[TrainBatch]):
    """Reads and crops; indexed by `Batch`, so that one item is one micro-batch."""

    def __init__(
        self,
        utterances: Sequence[Utterance] | UtteranceIndex,
        label_sets: Sequence[LabelSet],
        crop: CropConfig,
        *,
        cache_gb: float,
        noise: UtteranceIndex | None = None,
        transcripts: TranscriptConfig | None = None,
        max_bad: float = 0.0,
    ) -> None:
        """
        Args:
            utterances: with durations; those that can't be trained on are left out and counted, see `select`.
            label_sets: their rates may differ; empty for an objective that makes its own targets.
            noise: clips to draw from.
            transcripts: which label is one; then utterances are never cropped.
            max_bad: share of the utterances that may be unreadable.

        Raises:
            SpeechsslError: labels that don't fit the audio, or nothing left.
        """
        self.index = utterances if isinstance(utterances, UtteranceIndex) else ListedIndex(utterances)
        self.crop = crop
        self.max_bad = max_bad
        self.labels = [UtteranceLabels(s, self.index) for s in label_sets]
        self.rows, self.transcripts = select(self.index, self.labels, crop, transcripts)
        self.align = alignment(crop, [s.label_rate for s in self.labels])
        self.durations: NDArray[np.float64] = crop_seconds(self.index.durations[self.rows], crop)
        """Seconds that are used of each utterance at most, (U,)."""
        self.audio = AudioStore(self.index, crop.sample_rate, cache_gb=cache_gb, rows=self.rows)
        self.cached = self.audio.cached
        self.noise = None
        if noise is not None:
            self.noise = NoiseStore(noise, crop.sample_rate, cache_gb=cache_gb, seed=crop.seed)

    @property
    def utterances(self) -> Sequence[Utterance]:
        """Those that are trained on, by number."""
        return _Selected(self.index, self.rows)

    def stream(self, config: PretrainConfig, *, rank: int = 0, world_size: int = 1) -> BatchStream:
        """The order in which a run goes through the dataset."""
        balance = None
        if config.balance is not None:
            column = self.index.column(config.balance)
            balance = Balance(
                column.codes[self.rows], column.names, self.durations, alpha=config.balance_alpha, seed=config.seed
            )
            log_shares(config.balance, balance)
        return BatchStream(
            self.durations,
            batch_seconds=config.batch_seconds,
            seed=config.seed,
            max_size=config.max_batch,
            rank=rank,
            world_size=world_size,
            shards=None if self.index.shards is None else self.index.shards[self.rows],
            balance=balance,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, batch: Batch) -> TrainBatch:
        limit = self.crop.max_seconds
        if self.crop.grid_seconds is not None:
            limit = min(float(self.durations[item]) for item in batch.indices)
        rows = [self._row(item, batch.visit(place), limit) for place, item in enumerate(batch.indices)]
        waveform, lengths = _pad([r.waveform for r in rows])
        codes = tuple(_hold_last([r.codes[number] for r in rows]) for number in range(len(self.labels)))
        inputs = PretrainInputs(waveform, lengths, codes)
        if self.noise is not None:
            inputs = replace(inputs, noise=_pad([r.noise for r in rows if r.noise is not None])[0])
        if self.transcripts is not None:
            tokens, token_lengths = _pad([torch.tensor(r.tokens) for r in rows])
            inputs = replace(inputs, tokens=tokens, token_lengths=token_lengths)
        rate = self.crop.sample_rate
        bad = tuple(found for r in rows for found in r.bad)
        places = tuple(r.place for r in rows)
        return TrainBatch(batch, inputs, float(lengths.sum()) / rate, waveform.numel() / rate, bad, places)

    def _row(self, item: int, visit: int, limit: float) -> _Row:
        """At most `limit` seconds of an utterance, or of another one where it can't be read."""
        try:
            return self._cut(item, visit, limit)
        except UNREADABLE as error:
            bad, reason = [(item, str(error))], str(error)
        wanted = min(limit, float(self.durations[item]))
        for other in self._substitutes(item, visit, wanted):
            try:
                row = self._cut(other, visit, wanted if self.transcripts is None else limit)
            except UNREADABLE as error:
                bad.append((other, str(error)))
                reason = str(error)
                continue
            return replace(row, bad=tuple(BadAudio(n, why, other) for n, why in bad))
        raise AudioError(
            f"'{self.utterances[item].id}' can't be read, nor can {len(bad) - 1} others in its place: {reason} "
            "Look whether the storage is there; the last checkpoint is from before."
        )

    def _substitutes(self, item: int, visit: int, wanted: float) -> Iterator[int]:
        """Others that can be cut to `wanted` seconds, from a random one on; else the longest."""
        fits = self.durations >= wanted if self.transcripts is None else self.durations <= wanted
        fits[item] = False
        found = np.flatnonzero(fits)
        if len(found):
            begin = derive_seed(self.crop.seed, "substitute", visit, self.utterances[item].id) % len(found)
            found = np.take(found, np.arange(begin, begin + min(TRIES, len(found))), mode="wrap")
        else:
            found = np.argsort(-self.durations, kind="stable")
            found = found[found != item][:TRIES]
        return iter(found.tolist())

    def _cut(self, item: int, visit: int, limit: float) -> _Row:
        crop, row = self.crop, int(self.rows[item])
        total = self.audio.size(row)
        size = min(total, round(limit * crop.sample_rate))
        start, name = 0, self.index.name(row)
        if size < total:
            generator = make_generator(crop.seed, "crop", visit, name)
            start = int(torch.randint((total - size) // self.align + 1, (1,), generator=generator)) * self.align
        waveform = self.audio.read(row, start, size)
        codes = []
        for labels in self.labels:
            first = round(start * labels.label_rate / crop.sample_rate)
            codes.append(labels.codes(row, first, first + math.ceil(size * labels.label_rate / crop.sample_rate)))
        tokens = [] if self.transcripts is None else self.transcripts.encode(self.index.labels(row))
        noise = None if self.noise is None else self.noise.draw(len(waveform), visit, name)
        return _Row(waveform, codes, tokens, noise, (item, start))


class _Selected(Sequence[Utterance]):
    def __init__(self, index: UtteranceIndex, rows: NDArray[np.int32]) -> None:
        self._index = index
        self._rows = rows

    def __getitem__(self, number: int) -> Utterance:  # type: ignore[override]  # no slices
        return self._index.utterance(int(self._rows[number]))

    def __len__(self) -> int:
        return len(self._rows)


def log_shares(key: str, balance: Balance) -> None:
    """Says what each label's share of the audio becomes."""
    shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in zip(balance.names, balance.shares, strict=True))
    logger.info("Shares of the audio, balanced by '%s': %s.", key, shares)


def _pad(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stacks (S_i,) into (B, max S), 0 at the ends, with the lengths (B,)."""
    lengths = torch.tensor([len(r) for r in rows])
    padded = rows[0].new_zeros(len(rows), int(lengths.max()))
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded, lengths


def _hold_last(rows: Sequence[Tensor]) -> Tensor:
    """Stacks (T_i,) codes into (B, max T) int64, each row continued with its last code."""
    size = max(len(r) for r in rows)
    return torch.stack([torch.cat((r, r[-1:].expand(size - len(r)))) for r in rows]).long()
