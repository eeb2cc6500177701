"""The probe of parts of utterances: it cuts features into segments, and another probe does the rest.

B batch, N segments, T frames, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from speechssl.answers import moved
from speechssl.data.corpus import Corpus
from speechssl.result import Evaluation
from speechssl.task import TaskData
from speechssl.types import LossOutput, Utterance

from .data import cut_into_segments, read_everything
from .head import TimedHead, cut_frames, timed
from .parts import PartProbe

Segments = Mapping[str, Sequence[Utterance]]
"""Utterance id -> its segments, as utterances of their own."""


class SegmentProbe(PartProbe):
    """Predicts a class or a number of each segment."""

    @override
    def prepare(self, corpus: Corpus) -> TaskData:
        config = self.inner.config
        everything = read_everything(corpus, config)
        cut = {
            split: {u.id: cut_into_segments(u, config.fields[0], corpus.root) for u in utterances}
            for split, utterances in everything.items()
        }
        flat = {split: [s for part in of_split.values() for s in part] for split, of_split in cut.items()}
        data = self.inner.gather(flat, corpus.root)
        kept = {s.id for part in data.splits.values() for s in part}
        segments = {
            name: left
            for of_split in cut.values()
            for name, part in of_split.items()
            if (left := [s for s in part if s.id in kept])
        }
        splits = {split: [u for u in utterances if u.id in segments] for split, utterances in everything.items()}
        return TaskData(splits, {**data.extra, "segments": segments})

    @override
    def restore(self, state: Mapping[str, Any]) -> TaskData:
        data = super().restore(state)
        return replace(data, extra={**data.extra, "segments": {}})

    @override
    def loss(
        self,
        head: nn.Module,
        features: Tensor,
        lengths: Tensor,
        utterances: Sequence[Utterance],
        data: TaskData,
        generator: torch.Generator,
    ) -> LossOutput:
        own, parts = timed(head), _parts(utterances, data)
        cut, sizes = _cut(own, features, lengths, utterances, parts)
        return self.inner.loss(own.head, cut, sizes, [s for part in parts for s in part], data, generator)

    @override
    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance], data: TaskData
    ) -> list[Any]:
        """One list per utterance: of each segment {'start', 'end'} in seconds and what the inner probe says."""
        own, parts = timed(head), _parts(utterances, data)
        cut, sizes = _cut(own, features, lengths, utterances, parts)
        found = iter(self.inner.predict(own.head, cut, sizes, [s for part in parts for s in part], data))
        return [
            [{**_span(s, u, own, int(n)), **next(found)} for s in part]
            for u, part, n in zip(utterances, parts, lengths, strict=True)
        ]

    @override
    def answer(self, head: nn.Module, features: Tensor, utterance: Utterance, data: TaskData) -> Any:
        """Of a file that nobody has cut, one segment."""
        return moved(super().answer(head, features, utterance, data), utterance)

    @override
    def evaluate(
        self, head: nn.Module, predictions: Mapping[str, Any], data: TaskData, split: str, folder: Path
    ) -> Evaluation:
        utterances = data.splits[split]
        segments: Segments = data.extra["segments"]
        flat = [s for u in utterances for s in segments[u.id]]
        found = {s.id: p for u in utterances for s, p in zip(segments[u.id], predictions[u.id], strict=True)}
        return self.inner.evaluate(head, found, replace(data, splits={split: flat}), split, folder)


def _parts(utterances: Sequence[Utterance], data: TaskData) -> list[Sequence[Utterance]]:
    """The segments of each utterance; a user's file, of which none are known, is one."""
    segments: Segments = data.extra["segments"]
    return [segments.get(u.id, [u]) for u in utterances]


def _cut(
    head: TimedHead,
    features: Tensor,
    lengths: Tensor,
    utterances: Sequence[Utterance],
    parts: Sequence[Sequence[Utterance]],
) -> tuple[Tensor, Tensor]:
    owners = [row for row, part in enumerate(parts) for _ in part]
    spans = []
    for utterance, part, length in zip(utterances, parts, lengths.tolist(), strict=True):
        for segment in part:
            span = _span(segment, utterance, head, length)
            spans.append((span["start"], span["end"]))
    return cut_frames(features, lengths, owners, spans, frame_rate=head.frame_rate)


def _span(segment: Utterance, utterance: Utterance, head: TimedHead, length: int) -> dict[str, float]:
    """Seconds from the beginning of the utterance."""
    begin = segment.start - utterance.start
    seconds = length / head.frame_rate if segment.duration is None else segment.duration
    return {"start": round(begin, 6), "end": round(begin + seconds, 6)}
