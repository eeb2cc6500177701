"""Recordings with their segments: training pieces, and labels per frame.

T frames, N speakers.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from speechssl.audio import audio_info
from speechssl.data.corpus import Corpus, where_is
from speechssl.errors import ManifestError
from speechssl.metric.segments import Segment
from speechssl.mixing.simulate import simulate
from speechssl.types import Utterance

from .config import DiarizationConfig

logger = logging.getLogger(__name__)
SHORTEST_PIECE = 1.0  # seconds; a shorter rest stays with the piece before it


def read_splits(corpus: Corpus, config: DiarizationConfig) -> Mapping[str, list[Utterance]]:
    """The recordings of 'train' (cut into pieces), 'dev' and 'test' (whole).

    Raises:
        ManifestError: a recording without `segments`, with a segment that is none, or with too many speakers.
    """
    made = None if config.simulate is None else simulate(corpus, "conversations", config.simulate)
    splits: dict[str, list[Utterance]] = {}
    for split in ("train", "dev", "test"):
        found = corpus.utterances(split) if made is None else made[split]
        whole = [with_duration(_checked(u, corpus, split, config)) for u in found]
        if split == "train":
            splits[split] = [piece for u in whole for piece in cut(u, config.chunk)]
            logger.info("diarization train: %d recordings, %d pieces", len(whole), len(splits[split]))
        else:
            splits[split] = whole
    return splits


def segments_of(utterance: Utterance) -> list[Segment]:
    """The true segments; times from the beginning of the utterance, seconds."""
    return [Segment(utterance.id, b, e, str(s)) for s, b, e in utterance.labels["segments"]]


def cut(utterance: Utterance, longest: float) -> list[Utterance]:
    """Pieces of at most `longest` seconds (the last may be `SHORTEST_PIECE` longer), with their part of the segments.

    Each is an utterance of its own for the upstream, as in S3PRL, which cuts the audio too. Where a segment covers a
    whole piece, S3PRL's `_get_labeled_speech` leaves it unlabelled; here it is labelled.
    """
    duration = utterance.duration or 0.0
    count = max(1, math.ceil((duration - SHORTEST_PIECE) / longest)) if duration > longest else 1
    if count == 1:
        return [utterance]
    pieces = []
    for number in range(count):
        begin = number * longest
        end = duration if number == count - 1 else begin + longest
        inside = [
            [s, max(b, begin) - begin, min(e, end) - begin]
            for s, b, e in utterance.labels["segments"]
            if b < end and e > begin
        ]
        pieces.append(
            replace(
                utterance,
                id=f"{utterance.id}@{begin:g}",
                start=utterance.start + begin,
                duration=end - begin,
                labels={**utterance.labels, "segments": inside},
            )
        )
    return pieces


def activity_of(utterance: Utterance, *, frames: int, frame_rate: float, num_speakers: int) -> Tensor:
    """Who speaks in which frame.

    Begin and end are rounded to frames (halves to even), as S3PRL does.

    Returns:
        (frames, num_speakers) float32 of 0 and 1; speakers in alphabetical order, columns without a speaker are 0.
    """
    labels = torch.zeros(frames, num_speakers)
    segments = utterance.labels["segments"]
    columns = {name: k for k, name in enumerate(sorted({str(s) for s, _, _ in segments}))}
    for speaker, begin, end in segments:
        labels[round(begin * frame_rate) : round(end * frame_rate), columns[str(speaker)]] = 1.0
    return labels


def _checked(utterance: Utterance, corpus: Corpus, split: str, config: DiarizationConfig) -> Utterance:
    wrong = _what_is_wrong(utterance, config)
    if wrong:
        raise ManifestError(f"{where_is(corpus.root, split, utterance.id)} has the recording '{utterance.id}' {wrong}")
    return utterance


def _what_is_wrong(utterance: Utterance, config: DiarizationConfig) -> str:
    """The end of a sentence; '' = nothing."""
    segments: Any = utterance.labels.get("segments")
    if segments is None:
        return "without the label `segments`: diarization needs [speaker, begin, end] for each, or `simulate`."
    for segment in segments:
        if not _is_segment(segment):
            return f"with {segment!r} among its `segments`: it must be [speaker, begin, end]."
        if utterance.duration is not None and segment[1] >= utterance.duration:
            return f"with {segment!r} among its `segments`, which begins after its {utterance.duration:g} s: mend it."
    names = {str(speaker) for speaker, _, _ in segments}
    if len(names) > config.num_speakers:
        return f"with {len(names)} speakers: set `num_speakers` to at least that (it is {config.num_speakers})."
    unwritable = [name for name in (utterance.id, *names) if name.split() != [name]]
    return f"with the name '{unwritable[0]}', which RTTM can't hold: make it one word." if unwritable else ""


def _is_segment(segment: Any) -> bool:
    if not isinstance(segment, Sequence) or isinstance(segment, str) or len(segment) != 3:
        return False
    begin, end = segment[1:]
    return all(isinstance(t, int | float) and math.isfinite(t) for t in (begin, end)) and 0 <= begin < end


def with_duration(utterance: Utterance) -> Utterance:
    """The utterance with its duration, read from the file where it is not known."""
    if utterance.duration is not None:
        return utterance
    return replace(utterance, duration=audio_info(utterance.path).duration - utterance.start)
