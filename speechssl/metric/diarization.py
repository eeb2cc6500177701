"""Diarization metrics: who spoke when, scored on segments with exact times.

Conventions
-----------
Segments are those of :mod:`speechssl.metric.segments`. Speakers may overlap one another. Segments of one speaker that
overlap are one segment; segments that only touch stay two. Nothing is rounded to frames: time is cut at every boundary
of a segment, region or collar, and between two cuts nothing changes. Rates are fractions of the scored reference
speech, which counts a second in which two speak as two, and so may exceed 1.

Metrics
-------
* :func:`diarization_errors`: missed speech, false alarms and confusions; their sum is the diarization error rate (DER).
  Where r references and h hypotheses speak and c of the references are spoken by the speaker mapped to them, a second
  counts max(r - h, 0) missed, max(h - r, 0) false alarm and min(r, h) - c confused.
* :func:`jaccard_errors`: the Jaccard error rate (JER), in which each reference speaker counts alike.

Each recording's speakers are mapped one to one so that they speak together for the longest time. As NIST's script does,
this is decided on all of the evaluated time, before collars and overlaps are taken away. A collar of c seconds takes
away c on *both* sides of each boundary of a reference segment (pyannote.metrics calls that a collar of 2 c, and maps
speakers only after it has taken time away, so that its confusions may be fewer).

Defaults are SUPERB's: no collar, overlap scored (S3PRL `downstream/diarization/score.sh`, which calls dscore).
Paper: NIST 2009 Rich Transcription evaluation plan, and its `md-eval-22.pl` (`score_speaker_diarization`,
`add_collars_to_uem`, `exclude_overlapping_speech_from_uem`); for JER, Ryant et al. 2019 (second DIHARD challenge),
arXiv:1906.07839, and dscore `scorelib/metrics.py`.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from speechssl.errors import SpeechsslError
from speechssl.metric.detection import Floats
from speechssl.metric.interval import ratio_interval
from speechssl.metric.segments import Region, Segment
from speechssl.result import MetricValue

logger = logging.getLogger(__name__)
Bools = NDArray[np.bool_]
TOUCHING = 1e-6  # seconds: a shorter overlap of a speaker with itself is rounding


Part = TypeVar("Part", Segment, Region)


@dataclass(frozen=True)
class DiarizationErrors:
    """Seconds of speech and of errors per recording, in the order of `recordings`."""

    recordings: tuple[str, ...]
    scored: tuple[float, ...]
    """Seconds of reference speech, overlapping speakers counted one by one."""
    missed: tuple[float, ...]
    false_alarm: tuple[float, ...]
    confusion: tuple[float, ...]

    @property
    def errors(self) -> tuple[float, ...]:
        """Seconds of all three errors per recording."""
        return tuple(map(sum, zip(self.missed, self.false_alarm, self.confusion, strict=True)))

    def rate(self, *, seed: int = 0) -> MetricValue:
        """The diarization error rate of all recordings together, with its interval over recordings."""
        return self._pool(self.errors, seed)

    def metrics(self, *, seed: int = 0) -> dict[str, MetricValue]:
        """'der' and its parts 'missed', 'false_alarm' and 'confusion', each as a fraction of the reference speech."""
        parts = {"missed": self.missed, "false_alarm": self.false_alarm, "confusion": self.confusion}
        return {"der": self.rate(seed=seed), **{k: self._pool(v, seed) for k, v in parts.items()}}

    def rates_by(self, groups: Sequence[str], *, seed: int = 0) -> dict[str, MetricValue]:
        """The pooled rate of each group of recordings; `groups` has one entry per recording."""
        if len(groups) != len(self.recordings):
            raise SpeechsslError(
                f"`groups` must have one entry per recording, but have {len(groups)} for {len(self.recordings)}."
            )
        rows: dict[str, list[int]] = {}
        for row, group in enumerate(groups):
            rows.setdefault(group, []).append(row)
        return {group: self._pick(rows[group]).rate(seed=seed) for group in sorted(rows)}

    def _pick(self, rows: Sequence[int]) -> "DiarizationErrors":
        parts = (self.scored, self.missed, self.false_alarm, self.confusion)
        return DiarizationErrors(tuple(self.recordings[i] for i in rows), *(tuple(p[i] for i in rows) for p in parts))

    def _pool(self, seconds: Sequence[float], seed: int) -> MetricValue:
        if sum(self.scored) <= 0:
            raise SpeechsslError(
                f"The references have no scored speech in {', '.join(self.recordings[:3])}, so no rate is defined: "
                "are the regions and the collar right?"
            )
        low, high = ratio_interval(seconds, self.scored, seed=seed)
        return MetricValue(sum(seconds) / sum(self.scored), len(self.recordings), "recordings", low, high)


def diarization_errors(
    references: Sequence[Segment],
    hypotheses: Sequence[Segment],
    *,
    collar: float = 0.0,
    score_overlap: bool = True,
    regions: Sequence[Region] | None = None,
) -> DiarizationErrors:
    """Scores the segments of any number of recordings.

    Args:
        references: true segments.
        hypotheses: predicted segments; a recording without any is missed altogether.
        collar: seconds left unscored before and after each boundary of a reference segment.
        score_overlap: whether time in which several reference speakers speak is scored.
        regions: what is evaluated; recordings that they do not name are left out, which is logged. None = all
            recordings of the references, each from its first to its last segment of either side (as dscore).

    Raises:
        SpeechsslError: nothing to score, a segment or region without positive duration, a negative collar, or a
            hypothesis of an unknown recording.
    """
    if not 0 <= collar < math.inf:
        raise SpeechsslError(f"`collar` must be >= 0 seconds, but is {collar}.")
    rows = [_score(c, score_overlap) for c in _cut(references, hypotheses, regions, collar)]
    names, scored, missed, false_alarm, confusion = zip(*rows, strict=True)
    return DiarizationErrors(names, scored, missed, false_alarm, confusion)


def jaccard_errors(
    references: Sequence[Segment],
    hypotheses: Sequence[Segment],
    *,
    regions: Sequence[Region] | None = None,
    seed: int = 0,
) -> MetricValue:
    """The Jaccard error rate: the mean over all reference speakers of 1 - intersection / union with their hypothesis.

    Speakers are mapped so that the mean is least; a reference speaker without a hypothesis counts 1. Never more than 1:
    hypotheses mapped to nobody cost nothing. There is no collar, and overlap is scored. Arguments and errors as
    `diarization_errors`; the interval is over recordings.
    """
    sums, speakers = [], []
    for cuts in _cut(references, hypotheses, regions, 0.0):
        duration = cuts.duration * cuts.evaluated
        together = (cuts.reference * duration) @ cuts.hypothesis.T.astype(np.float64)  # (R, H)
        alone, other = cuts.reference @ duration, cuts.hypothesis @ duration
        present = alone > 0
        union = alone[:, None] + other[None, :] - together
        jaccard = np.divide(together, union, out=np.zeros_like(together), where=union > 0)[present]
        sums.append(float(present.sum() - jaccard[linear_sum_assignment(-jaccard)].sum()))
        speakers.append(int(present.sum()))
    if not sum(speakers):
        raise SpeechsslError("No reference speaker speaks in the regions, so the Jaccard error rate is undefined.")
    low, high = ratio_interval(sums, speakers, seed=seed)
    return MetricValue(sum(sums) / sum(speakers), sum(speakers), "speakers", low, high)


@dataclass(frozen=True)
class _Cuts:
    """One recording, cut into I pieces in which nothing changes; R reference speakers, H hypothesised ones."""

    recording: str
    duration: Floats
    """Seconds, (I,)."""
    evaluated: Bools
    """Whether a piece lies in a region, (I,)."""
    forgiven: Bools
    """Whether a piece lies in a collar, (I,)."""
    reference: Bools
    """Who speaks, (R, I)."""
    hypothesis: Bools
    """(H, I)."""


def _score(cuts: _Cuts, score_overlap: bool) -> tuple[str, float, float, float, float]:
    """Recording, and seconds of reference speech, missed speech, false alarm and confusion."""
    seconds = cuts.duration * cuts.evaluated
    together = (cuts.reference * seconds) @ cuts.hypothesis.T.astype(np.float64)  # (R, H)
    mapped_reference, mapped_hypothesis = linear_sum_assignment(-together)
    spoken, guessed = cuts.reference.sum(axis=0), cuts.hypothesis.sum(axis=0)  # (I,)
    right = (cuts.reference[mapped_reference] & cuts.hypothesis[mapped_hypothesis]).sum(axis=0)
    seconds = seconds * ~cuts.forgiven
    if not score_overlap:
        seconds = seconds * (spoken < 2)
    missed, false_alarm = np.maximum(spoken - guessed, 0), np.maximum(guessed - spoken, 0)
    confusion = np.minimum(spoken, guessed) - right
    return (
        cuts.recording,
        float(seconds @ spoken),
        float(seconds @ missed),
        float(seconds @ false_alarm),
        float(seconds @ confusion),
    )


def _cut(
    references: Sequence[Segment], hypotheses: Sequence[Segment], regions: Sequence[Region] | None, collar: float
) -> Iterator[_Cuts]:
    spoken, guessed = _by_recording(references, "references"), _by_recording(hypotheses, "hypotheses")
    parts = None if regions is None else _by_recording(regions, "regions")
    if unknown := sorted(set(guessed) - set(spoken) - set(parts or ())):
        raise SpeechsslError(
            f"`hypotheses` name a recording '{unknown[0]}' that neither references nor regions have: are they of the "
            "same data? A recording in which nobody speaks needs a region."
        )
    names = sorted(spoken if parts is None else parts)
    if not names:
        raise SpeechsslError("There are no recordings to score: `references`, or `regions`, are empty.")
    if left_out := set(spoken) - set(names):
        logger.warning("%d recordings of the references have no region and are not scored", len(left_out))
    for name in names:
        everything = [*spoken.get(name, []), *guessed.get(name, [])]
        span = [Region(name, min(s.start for s in everything), max(s.end for s in everything))] if parts is None else []
        yield _pieces(name, spoken.get(name, []), guessed.get(name, []), parts[name] if parts else span, collar)


def _pieces(
    name: str, references: Sequence[Segment], hypotheses: Sequence[Segment], regions: Sequence[Region], collar: float
) -> _Cuts:
    spoken, guessed = _turns(references), _turns(hypotheses)
    evaluated = np.array([(r.start, r.end) for r in regions])
    boundaries = np.concatenate([turns.ravel() for turns in spoken]) if spoken else np.zeros(0)
    collars = np.stack((boundaries - collar, boundaries + collar), axis=1)
    everything = [*spoken, *guessed, evaluated, collars]
    times = np.unique(np.concatenate([spans.ravel() for spans in everything]))  # (I + 1,)
    pieces = times.size - 1
    return _Cuts(
        name,
        np.diff(times),
        _covered(evaluated, times),
        _covered(collars, times),
        np.array([_covered(t, times) for t in spoken], dtype=np.bool_).reshape(len(spoken), pieces),
        np.array([_covered(t, times) for t in guessed], dtype=np.bool_).reshape(len(guessed), pieces),
    )


def _turns(segments: Sequence[Segment]) -> list[Floats]:
    """Starts and ends of each speaker's segments, (n, 2), those that overlap merged."""
    merged: dict[str, list[list[float]]] = {}
    for segment in sorted(segments, key=lambda s: s.start):
        turns = merged.setdefault(segment.speaker, [])
        if turns and segment.start < turns[-1][1] - TOUCHING:
            turns[-1][1] = max(turns[-1][1], segment.end)
        else:
            turns.append([segment.start, segment.end])
    return [np.array(turns) for turns in merged.values()]


def _covered(spans: Floats, times: Floats) -> Bools:
    """Which pieces between `times` (I + 1,) lie in one of `spans` (n, 2), whose ends are among them; (I,)."""
    steps = np.zeros(times.size, dtype=np.int64)
    np.add.at(steps, np.searchsorted(times, spans[:, 0]), 1)
    np.add.at(steps, np.searchsorted(times, spans[:, 1]), -1)
    covered: Bools = np.cumsum(steps)[:-1] > 0
    return covered


def _by_recording(parts: Sequence[Part], kind: str) -> dict[str, list[Part]]:
    found: dict[str, list[Part]] = {}
    for row, part in enumerate(parts):
        if not (math.isfinite(part.start) and math.isfinite(part.end) and part.start < part.end):
            raise SpeechsslError(
                f"{kind}[{row}] of '{part.recording}' must end after its start, but is from {part.start} to {part.end}."
            )
        found.setdefault(part.recording, []).append(part)
    return found
