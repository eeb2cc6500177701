"""From probabilities per frame to segments, by a threshold and a median filter that are chosen on dev.

T frames, N speakers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from speechssl.loss.permutation import best_permutation
from speechssl.metric.diarization import DiarizationErrors, diarization_errors
from speechssl.metric.segments import Region, Segment, segments_from_activity
from speechssl.types import Utterance

from .data import activity_of, segments_of

Activity = NDArray[np.float32]
"""Probability that each speaker speaks, (T, N)."""
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Decision:
    """How probabilities become segments."""

    threshold: float
    """A frame is speech above it."""
    median: int
    """Frames of the median filter, odd; 1 = none."""


def to_segments(activity: Activity, decision: Decision, *, frame_rate: float, recording: str) -> list[Segment]:
    """Segments of one recording; speakers are named after it."""
    return segments_from_activity(
        activity, frame_rate, recording=recording, threshold=decision.threshold, median=decision.median
    )


def fill_up(activity: Activity, *, duration: float, frame_rate: float) -> Activity:
    """Makes the frames as many as the recording has: upstreams without padding give one less, which repeats the last.

    As S3PRL's `_match_length`, whose labels have floor(duration x rate) frames.
    """
    frames = max(1, math.floor(duration * frame_rate + 1e-6))
    return np.pad(activity[:frames], ((0, max(0, frames - len(activity))), (0, 0)), mode="edge")


def measure(
    utterances: Sequence[Utterance], activities: Mapping[str, Activity], decision: Decision, *, frame_rate: float
) -> tuple[DiarizationErrors, list[Segment]]:
    """SUPERB's errors (no collar, overlap scored) of one decision, and the segments that it makes."""
    found = [
        segment
        for u in utterances
        for segment in to_segments(activities[u.id], decision, frame_rate=frame_rate, recording=u.id)
    ]
    references = [segment for u in utterances for segment in segments_of(u)]
    return diarization_errors(references, found, regions=regions_of(utterances)), found


def regions_of(utterances: Sequence[Utterance]) -> list[Region]:
    """All of each recording, so that one in which nobody speaks is scored too."""
    return [
        Region(u.id, 0.0, max([u.duration or 0.0, *(segment.end for segment in segments_of(u))])) for u in utterances
    ]


def choose(
    utterances: Sequence[Utterance],
    activities: Mapping[str, Activity],
    *,
    thresholds: Sequence[float],
    medians: Sequence[int],
    frame_rate: float,
) -> Decision:
    """The decision with the least error rate, counted in frames; of equal ones, the first.

    Exact times would take a hundred times as long for every evaluation on dev, and choose the same but for rounding.
    """
    candidates = [Decision(threshold, median) for median, threshold in product(medians, thresholds)]
    errors = np.zeros(len(candidates))
    for utterance in utterances:
        activity = activities[utterance.id]
        frames, speakers = activity.shape
        truth = activity_of(utterance, frames=frames, frame_rate=frame_rate, num_speakers=speakers)
        errors += frame_errors(truth.numpy() > 0, np.stack([_decide(activity, c) for c in candidates]))
    return candidates[int(errors.argmin())]


def frame_errors(reference: Bools, hypotheses: Bools) -> NDArray[np.float64]:
    """Missed, falsely found and confused speech of several hypotheses of one recording, in frames.

    Args:
        reference: (T, N).
        hypotheses: (K, T, N), speakers in any order.

    Returns:
        (K,).
    """
    spoken, guessed = reference.sum(axis=1), hypotheses.sum(axis=2)  # (T,), (K, T)
    together = torch.from_numpy(np.einsum("tr,ktn->krn", reference.astype(np.float32), hypotheses.astype(np.float32)))
    right = -best_permutation(-together)[0].numpy()  # (K,)
    wrong: NDArray[np.float64] = np.abs(spoken - guessed).sum(axis=1) + np.minimum(spoken, guessed).sum(axis=1) - right
    return wrong


def _decide(activity: Activity, decision: Decision) -> Bools:
    """Who speaks, (T, N): a median of zeros and ones is what more than half of them are, zeros beyond the ends."""
    speech = activity > decision.threshold
    half = decision.median // 2
    sums = np.cumsum(np.pad(speech, ((half + 1, half), (0, 0))), axis=0, dtype=np.int64)
    counts: NDArray[np.int64] = sums[decision.median :] - sums[: -decision.median]
    return counts > half
