"""Segments of speech: who speaks when in a recording, read from frames of a network and from NIST's files.

Conventions
-----------
A segment is one speaker's speech in one recording, from `start` to `end` in seconds. A speaker's name means nothing
outside of its recording.

RTTM holds one segment per line ('SPEAKER <recording> <channel> <start> <duration> <NA> <NA> <speaker> <NA> <NA>'), UEM
one evaluated region per line ('<recording> <channel> <start> <end>'). Lines that begin with ';' or '#' are comments; a
byte-order mark and CRLF are read as well.

Paper: NIST 2009 Rich Transcription evaluation plan, appendix A; NIST `md-eval-22.pl`, `get_rttm_file`, `get_uem_data`;
S3PRL `downstream/diarization/make_rttm.py` for the way from frames to segments.
"""

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import median_filter

from speechssl.errors import ManifestError, SpeechsslError
from speechssl.files import replacing
from speechssl.text_files import read_lines

logger = logging.getLogger(__name__)
RTTM_FIELDS = 9  # of NIST's ten the last may be absent
UEM_FIELDS = 4


@dataclass(frozen=True)
class Segment:
    """One speaker's speech in one recording."""

    recording: str
    start: float
    """Seconds from the beginning of the recording."""
    end: float
    """Seconds, later than `start`."""
    speaker: str


@dataclass(frozen=True)
class Region:
    """A part of a recording that is evaluated (a line of a UEM file)."""

    recording: str
    start: float
    """Seconds."""
    end: float
    """Seconds, later than `start`."""


def segments_from_activity(
    activity: ArrayLike, frame_rate: float, *, recording: str, threshold: float, median: int
) -> list[Segment]:
    """Segments of frame-wise activity: above a threshold, and smoothed.

    S3PRL tries thresholds 0.3 to 0.7 and medians 1 and 11 (score.sh) and reports the best on test; choose them on dev.

    Args:
        activity: (T, N) probability that each of N speakers speaks; frame t lasts from t to t + 1 over `frame_rate`.
        frame_rate: Hz.
        recording: its name; speakers are named after it and their column, as in S3PRL's make_rttm.py.
        threshold: a frame is speech where its activity is above this.
        median: odd number of frames of the median filter, taken after the threshold; silence lies beyond the ends, and
            1 = no filter.
    """
    frames = np.asarray(activity, dtype=np.float64)
    if frames.ndim != 2 or not np.isfinite(frames).all():
        raise SpeechsslError(
            f"`activity` of '{recording}' must be finite (T, N) numbers, but has shape {frames.shape}."
        )
    if median < 1 or median % 2 == 0:
        raise SpeechsslError(f"`median` must be an odd number of frames >= 1, but is {median}.")
    if frame_rate <= 0:
        raise SpeechsslError(f"`frame_rate` must be positive, but is {frame_rate} Hz.")
    speech = median_filter((frames > threshold).astype(np.int8), size=(median, 1), mode="constant", cval=0)
    segments = []
    for column in range(speech.shape[1]):
        edges = np.flatnonzero(np.diff(speech[:, column], prepend=0, append=0)).reshape(-1, 2).tolist()
        speaker = f"{recording}_{column}"
        segments += [Segment(recording, start / frame_rate, end / frame_rate, speaker) for start, end in edges]
    return segments


def read_rttm(path: Path) -> list[Segment]:
    """Reads the SPEAKER lines of an RTTM file; lines of other types are counted in a log line.

    Raises:
        ManifestError: names file and line of what is not RTTM, or of a recording with a second channel.
    """
    segments, others, channels = [], 0, dict[str, tuple[str, str]]()
    for where, fields in _records(path):
        if fields[0].upper() != "SPEAKER":
            others += 1
            continue
        if len(fields) < RTTM_FIELDS:
            raise ManifestError(f"{where} must have at least {RTTM_FIELDS} fields, but has {len(fields)}: is it RTTM?")
        _one_channel(channels, fields[1], fields[2], where)
        start, duration = _time(fields[3], "start", where), _time(fields[4], "duration", where)
        if duration <= 0:
            raise ManifestError(f"{where} must have a positive duration, but has {fields[4]}: correct or remove it.")
        segments.append(Segment(fields[1], start, start + duration, fields[7]))
    if others:
        logger.info("%s: %d lines that are not SPEAKER were left out", path, others)
    return segments


def write_rttm(path: Path, segments: Iterable[Segment]) -> None:
    """Writes RTTM with times in microseconds' precision.

    Raises:
        ManifestError: a name that is empty or has a space in it, which the format cannot hold.
    """
    rows = [
        f"SPEAKER {_name(s.recording)} 1 {s.start:.6f} {s.end - s.start:.6f} <NA> <NA> {_name(s.speaker)} <NA> <NA>\n"
        for s in segments
    ]
    _write(path, rows)


def read_uem(path: Path) -> list[Region]:
    """Reads the regions of a UEM file; names are kept as they are written; errors as `read_rttm`."""
    regions, channels = [], dict[str, tuple[str, str]]()
    for where, fields in _records(path):
        if len(fields) != UEM_FIELDS:
            raise ManifestError(f"{where} must have {UEM_FIELDS} fields, but has {len(fields)}: is it UEM?")
        _one_channel(channels, fields[0], fields[1], where)
        start, end = _time(fields[2], "start", where), _time(fields[3], "end", where)
        if end <= start:
            raise ManifestError(f"{where} must end after its start, but ends at {fields[3]}: correct or remove it.")
        regions.append(Region(fields[0], start, end))
    return regions


def write_uem(path: Path, regions: Iterable[Region]) -> None:
    """Writes UEM with times in microseconds' precision; errors as `write_rttm`."""
    _write(path, [f"{_name(r.recording)} 1 {r.start:.6f} {r.end:.6f}\n" for r in regions])


def _records(path: Path) -> Iterator[tuple[str, list[str]]]:
    """'<file>, line <n>' and the fields of each line that is neither blank nor a comment."""
    for where, line in read_lines(path):
        if line.lstrip()[0] not in "#;":
            yield where.removesuffix(","), line.split()


def _time(text: str, what: str, where: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ManifestError(f"{where} must have a {what} in seconds >= 0, but has '{text}'.")
    return seconds


def _one_channel(channels: dict[str, tuple[str, str]], recording: str, channel: str, where: str) -> None:
    known, first = channels.setdefault(recording, (channel, where))
    if known != channel:
        raise ManifestError(
            f"{where} has channel {channel} of '{recording}', but {first} has channel {known}: name each channel as a "
            "recording of its own."
        )


def _name(name: str) -> str:
    if not name or name.split() != [name]:
        raise ManifestError(f"A name in RTTM and UEM must be one word, but is '{name}': rename it.")
    return name


def _write(path: Path, rows: Iterable[str]) -> None:
    text = "".join(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
