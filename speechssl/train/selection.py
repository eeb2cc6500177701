"""Which utterances can be trained on, and how much of each.

U utterances.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speechssl.data.indexed import UtteranceIndex
from speechssl.data.transcripts import Transcripts, Units, read_transcripts
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.targets.labels import UtteranceLabels

logger = logging.getLogger(__name__)
CHUNK = 1 << 16
"""Utterances that are looked at together."""
ROUNDING = 0.05
"""Seconds by which labels may be shorter or longer than the audio: front-ends drop what fills no frame."""


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


@dataclass(frozen=True)
class TranscriptConfig:
    """Which label is the transcript, and what its units are: see `Transcripts`."""

    key: str
    units: Units = "characters"


def select(
    index: UtteranceIndex,
    labels: Sequence[UtteranceLabels],
    crop: CropConfig,
    transcripts: TranscriptConfig | None = None,
) -> tuple[NDArray[np.int32], Transcripts | None]:
    """Leaves out, and counts in the log: utterances without labels, shorter than `crop.min_seconds` or, where there are
    transcripts, longer than `crop.max_seconds`, without one, or with more units than frames.

    Returns:
        the numbers of the others, (U,), and the transcripts.

    Raises:
        SpeechsslError: nothing is left, an utterance has no duration, or labels don't fit the audio.
    """
    seconds = index.durations
    unknown = np.flatnonzero(np.isnan(seconds))
    if len(unknown):
        raise SpeechsslError(f"Utterance '{index.name(int(unknown[0]))}' has no duration: give one in the manifest.")
    kept = np.ones(len(index), dtype=bool)
    for label_set in labels:
        kept &= label_set.lengths() >= 0
    if not kept.all():
        logger.warning("%d of %d utterances have no labels and are left out.", int((~kept).sum()), len(index))
    kept = _without(kept, seconds < crop.min_seconds, seconds, f"are shorter than min_seconds={crop.min_seconds:g} s")
    found = None
    if transcripts is not None:
        if crop.grid_seconds is not None:
            raise ConfigError("Transcripts belong to whole utterances: set `grid_seconds` to null.")
        longer = seconds > crop.max_seconds
        kept = _without(kept, longer, seconds, f"are longer than max_seconds={crop.max_seconds:g} s, with transcripts")
        rows = np.flatnonzero(kept)
        if len(rows):
            found, frames = read_transcripts(index, transcripts.key, transcripts.units, rows=rows)
            needed = np.zeros(len(index))
            needed[rows] = frames
            kept = _without(kept, needed == 0, seconds, f"have no '{transcripts.key}'")
            kept = _without(
                kept, needed > np.floor(seconds * crop.frame_rate) - 1, seconds, "have more units than frames"
            )
    if not kept.any():
        raise SpeechsslError(
            f"None of {len(index)} utterances is labelled and at least {crop.min_seconds:g} s long: "
            "lower `min_seconds`, or run `speechssl cluster` on this split."
        )
    rows32 = np.flatnonzero(kept).astype(np.int32)
    for label_set in labels:
        _check_fit(index, rows32, label_set)
    return rows32, found


def crop_seconds(durations: NDArray[np.float64], crop: CropConfig) -> NDArray[np.float64]:
    """How much of utterances is used at most, seconds."""
    seconds = np.minimum(durations, crop.max_seconds)
    if crop.grid_seconds is None:
        return seconds
    on_grid = np.floor(seconds / crop.grid_seconds + 1e-6) * crop.grid_seconds
    return np.where(seconds < crop.grid_seconds, seconds, on_grid)


def alignment(crop: CropConfig, label_rates: Sequence[float]) -> int:
    """Samples that both a frame of the upstream and a label of every set begin on."""
    hops = [crop.sample_rate / rate for rate in (crop.frame_rate, *label_rates)]
    if any(h != round(h) for h in hops):
        raise SpeechsslError(f"Frame and label rates must divide the sample rate, but the hops are {hops} samples.")
    return math.lcm(*(round(h) for h in hops))


def _without(
    kept: NDArray[np.bool_], out: NDArray[np.bool_], seconds: NDArray[np.float64], why: str
) -> NDArray[np.bool_]:
    out = kept & out
    if out.any():
        logger.warning("%d utterances (%.0f s) %s and are left out.", int(out.sum()), float(seconds[out].sum()), why)
    return kept & ~out


def _check_fit(index: UtteranceIndex, rows: NDArray[np.int32], labels: UtteranceLabels) -> None:
    lengths = labels.lengths()
    for begin in range(0, len(rows), CHUNK):
        part = rows[begin : begin + CHUNK]
        found, seconds = lengths[part] / labels.label_rate, index.durations[part]
        bad = np.flatnonzero((found == 0) | (np.abs(found - seconds) > ROUNDING))
        if len(bad):
            first = bad[0]
            raise SpeechsslError(
                f"The labels of '{index.name(int(part[first]))}' last {found[first]:.2f} s, its audio "
                f"{seconds[first]:.2f} s: run `speechssl cluster` again on this corpus."
            )
