"""Labelled spans of utterances, and which frames are theirs.

One rule, for segments and for frames: a frame belongs to the span that its centre lies in. The centre of frame k, from
0, is (k + 0.5) / frame_rate seconds after the beginning of the utterance, and a span holds its begin and not its end,
so that of two spans that meet no frame is in both.

F labelled frames.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from speechssl.data.corpus import describe_utterance
from speechssl.errors import ManifestError
from speechssl.types import Utterance

SLACK = 0.05
"""Seconds by which lists and audio differ from rounding."""
OVERLAP = 0.011
"""Seconds that neighbours may share: begin and duration rounded to hundredths; the first then ends where the next
begins."""
ROUNDING = 1e-6
"""Frames: 0.07 s at 50 Hz is 3.5 frames, but 3.5000000000000004 in floating point."""
Places = NDArray[np.int64]


class Span(NamedTuple):
    """A labelled stretch; seconds from the beginning of its utterance."""

    begin: float
    end: float
    value: Any


@dataclass(frozen=True)
class Spans:
    """The labelled stretches of an utterance, which do not overlap, in their order; seconds from its beginning."""

    begins: NDArray[np.float64]
    ends: NDArray[np.float64]
    values: NDArray[np.float64]
    """Numbers, or which class."""

    @property
    def seconds(self) -> NDArray[np.float64]:
        """How long each is."""
        return self.ends - self.begins


def first_frames(seconds: NDArray[np.float64], frame_rate: float) -> Places:
    """The first frame whose centre is at each of the times, or later."""
    return np.ceil(seconds * frame_rate - 0.5 - ROUNDING).astype(np.int64).clip(min=0)


def label_frames(spans: Spans, *, frames: int, frame_rate: float) -> tuple[Places, NDArray[np.float64]]:
    """The frames of an utterance of so many that lie in a span, ascending, and what the spans say; (F,) each."""
    first = np.minimum(first_frames(spans.begins, frame_rate), frames)
    sizes = np.minimum(first_frames(spans.ends, frame_rate), frames) - first
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.repeat(first, sizes) + within, np.repeat(spans.values, sizes)


def find_runs(places: Places, *values: NDArray[Any]) -> list[slice]:
    """Stretches of (F,) places that follow one another, within which none of the (F,) values changes."""
    if not len(places):
        return []
    new = np.diff(places) != 1
    for column in values:
        new |= column[1:] != column[:-1]
    edges = [0, *(np.flatnonzero(new) + 1).tolist(), len(places)]
    return [slice(begin, end) for begin, end in itertools.pairwise(edges)]


def read_spans(utterance: Utterance, name: str, root: Path) -> list[Span]:
    """The entries of the list that is the label `name`; none where the label is absent.

    Raises:
        ManifestError: the label is no list of {start, end, value}, or a span is not within the utterance.
    """
    found = parse_spans(utterance, name, root)
    length = math.inf if utterance.duration is None else utterance.duration
    for span in found:
        if not (0 <= span.begin < span.end <= length + SLACK and span.begin < length):
            where = describe_utterance(root, utterance.id)
            raise ManifestError(
                f"{where} is {length:g} s long, but has '{name}' from {span.begin:g} s to {span.end:g} s."
            )
    return found


def parse_spans(utterance: Utterance, name: str, root: Path) -> list[Span]:
    """`read_spans` of times that may lie anywhere, since they may be in another unit than seconds."""
    entries: Any = utterance.labels.get(name)
    if entries is None or entries == "":
        return []
    if not isinstance(entries, list):
        where = describe_utterance(root, utterance.id)
        raise ManifestError(
            f"{where} has no list of {{start, end, value}} as '{name}': give it one; a probe may set `level=utterance`."
        )
    found = []
    for entry in entries:
        try:
            found.append(Span(float(entry["start"]), float(entry["end"]), entry["value"]))
        except (KeyError, TypeError, ValueError) as error:
            where = describe_utterance(root, utterance.id)
            raise ManifestError(
                f"{where} has {entry!r} in '{name}', but a segment is {{start, end, value}} in seconds."
            ) from error
    return found


def lay_out(spans: Sequence[Span], values: Sequence[float], where: str) -> Spans:
    """Spans in their order, none of which begins before the one before it ends.

    Args:
        values: of each, as a number.
        where: begins the message.

    Raises:
        ManifestError: two that overlap by more than rounding.
    """
    order = sorted(range(len(spans)), key=lambda k: spans[k].begin)
    begins, ends = (np.array([spans[k][side] for k in order], dtype=np.float64) for side in (0, 1))
    shared = ends[:-1] - begins[1:]
    if len(shared) and shared.max() > OVERLAP:
        k = int(shared.argmax())
        raise ManifestError(
            f"{where} has a span from {begins[k]:g} s to {ends[k]:g} s and another from {begins[k + 1]:g} s, but a "
            "frame has one label: cut them so that they do not overlap, and a probe may set `level=segment`."
        )
    ends[:-1] = np.minimum(ends[:-1], begins[1:])
    return Spans(begins, ends, np.array([values[k] for k in order], dtype=np.float64))
