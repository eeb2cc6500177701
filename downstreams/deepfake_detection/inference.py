"""A user's own files: what is heard of them, and what is said of them.

A detector that was trained on a set of our making hears stretches in that set's common form (see conditioning.py); one
that was trained on a labelled corpus hears files as they are. Either way windows are judged, one every `hop` seconds.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby, pairwise
from math import exp, isnan, log
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from downstreams.deepfake_detection.conditioning import (
    PAD,
    SAMPLE_RATE,
    bare_sound,
    read_whole,
    windows,
    without_offset,
)
from downstreams.deepfake_detection.config import DeepfakeConfig
from downstreams.deepfake_detection.speech import why_not
from speechssl.data.flac import write_flac
from speechssl.errors import AudioError, ConfigError, UnknownNameError
from speechssl.inference import Prepared
from speechssl.metric.calibration import Calibration, fit_calibration
from speechssl.types import Utterance

WINDOW = 4.0375
"""Seconds of a window where neither the user nor `head.window` says: the 64,600 samples of published systems."""
WHOLE = 60.0
"""Seconds; a longer file is judged by its windows alone."""


@dataclass(frozen=True)
class Listening:
    """What `speechssl infer --set` may change."""

    hop: float = 0.0
    """Seconds from one window to the next; 0 = half a window."""
    window: float = 0.0
    """Seconds that are judged at once, of detectors that hear files as they are; 0 = `head.window`, or 4.0375."""
    prior: float = 0.5
    """Probability that a file is spoofed before it was heard."""

    def changed(self, settings: Mapping[str, str]) -> "Listening":
        """With what the user asked for.

        Raises:
            UnknownNameError: no such setting.
            ConfigError: a value that does not fit.
        """
        known = [field.name for field in fields(self)]
        values = {}
        for name, text in settings.items():
            if name not in known:
                raise UnknownNameError("setting", name, known)
            try:
                values[name] = float(text)
            except ValueError as error:
                raise ConfigError(f"`{name}` must be a number, but is '{text}'.") from error
            if not 0.0 < values[name] < (1.0 if name == "prior" else 3600.0):
                limit = "1" if name == "prior" else "3600 seconds"
                raise ConfigError(f"`{name}` must be above 0 and below {limit}, but is {text}.")
        return replace(self, **values)


def calibrate(real: Sequence[float], spoofed: Sequence[float]) -> Calibration:
    """The affine map from scores to log-likelihood ratios.

    Each side is given one more trial, the median of the other, so that where dev is parted without an error the map is
    as steep as so many trials can tell, and no steeper (a choice of ours).
    """
    return fit_calibration([*real, float(np.median(spoofed))], [*spoofed, float(np.median(real))])


def prepare_files(
    utterances: Sequence[Utterance], folder: Path, config: DeepfakeConfig, listening: Listening
) -> Prepared:
    """Cuts files into what is judged at once.

    Args:
        folder: receives conditioned audio, where the detector was trained on the common form.

    Returns:
        One utterance per window, with labels `file`, `start` and `end` (seconds), `repeated` (seconds of speech, where
        it is shorter than a window) and `whole` (it is all of the file); and what can't be judged.
    """
    found: list[Utterance] = []
    refused: dict[str, str] = {}
    for number, utterance in enumerate(utterances):
        try:
            if config.conditioned:
                found += _condition(utterance, folder, f"{number}", config, listening)
            else:
                found += _cut(utterance, f"{number}", config, listening)
        except AudioError as error:
            refused[utterance.path] = str(error)
    return Prepared(found, refused)


def _read(utterance: Utterance, config: DeepfakeConfig) -> tuple[float, float, Any]:
    """Seconds of the audio, where in it `bare_sound` begins, and that, which holds speech, (S,) at 16 kHz."""
    waveform, rate = read_whole(utterance)
    begin, sound = bare_sound(waveform, rate, config.spoof.conditioning)
    reason = why_not(without_offset(waveform, rate)[1], config.spoof.conditioning.trim_db)
    if reason:
        raise AudioError(f"{utterance.path} {reason}.")
    return waveform.numel() / rate, begin, sound


def _condition(
    utterance: Utterance, folder: Path, name: str, config: DeepfakeConfig, listening: Listening
) -> list[Utterance]:
    """Windows in the common form of the set, or their scores would not compare with its threshold."""
    conditioning = config.spoof.conditioning
    _, begin, waveform = _read(utterance, config)
    begin += utterance.start
    found: list[Utterance] = []
    seconds = waveform.numel() / SAMPLE_RATE - 2 * PAD
    for place, stretch in windows(waveform, conditioning, hop=listening.hop or conditioning.seconds / 2):
        path = folder / f"{name}-{len(found)}.flac"
        write_flac(path, stretch.numpy())
        start, end = max(place - PAD, 0.0), min(place - PAD + conditioning.seconds, seconds)
        labels: dict[str, Any] = {"file": utterance.path, "start": begin + start, "end": begin + end}
        if end - start < conditioning.seconds - 0.02:
            labels["repeated"] = end - start
        found.append(Utterance(path.stem, str(path), duration=conditioning.seconds, labels=labels))
    if not found:
        raise AudioError(f"{utterance.path} holds no stretch with enough speech: give a longer recording.")
    return found


def _cut(utterance: Utterance, name: str, config: DeepfakeConfig, listening: Listening) -> list[Utterance]:
    """All of the file, as the test set was heard, and windows of it where it is longer than one."""
    begin, (seconds, *_) = utterance.start, _read(utterance, config)
    window = listening.window or config.head.window or WINDOW
    hop = listening.hop or window / 2
    starts = [0.0]
    while starts[-1] + window < seconds:
        starts.append(round(len(starts) * hop, 9))
    if len(starts) > 1:
        starts[-1] = seconds - window
    found = []
    for number, start in enumerate(starts):
        end = min(start + window, seconds)
        labels: dict[str, Any] = {"file": utterance.path, "start": begin + start, "end": begin + end}
        if config.head.window is not None and end - start < config.head.window - 0.02:
            labels["repeated"] = end - start
        found.append(Utterance(f"{name}-{number}", utterance.path, begin + start, end - start, labels))
    # A network that hears one window of each utterance hears the windows only.
    if len(found) > 1 and config.head.window is None and seconds <= WHOLE:
        labels = {"file": utterance.path, "start": begin, "end": begin + seconds, "whole": True}
        found.append(Utterance(f"{name}-whole", utterance.path, begin, seconds, labels))
    return found


def probability(score: float, calibration: Calibration, prior: float) -> float | None:
    """Of being spoofed; None where the calibration is not known."""
    ratio = float(calibration.apply(score))
    if isnan(ratio):
        return None
    return 1.0 / (1.0 + exp(min(max(ratio + log((1.0 - prior) / prior), -700.0), 700.0)))


def judge_files(
    scores: Mapping[str, float],
    utterances: Sequence[Utterance],
    *,
    threshold: float,
    calibration: Calibration,
    prior: float,
) -> dict[str, Any]:
    """Path -> score (higher = more likely a person), probability of being spoofed, verdict, curve over time, ...

    Args:
        scores: id of what was prepared -> score.
        utterances: from `prepare_files`.
        threshold: scores above it are real.
        calibration: fitted on dev.
        prior: of being spoofed.
    """
    by_file: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        by_file[utterance.labels["file"]].append(utterance)
    found = {}
    for path, cut in by_file.items():
        parts = sorted(cut, key=lambda u: float(u.labels["start"]))
        curve = [
            {
                "start": round(u.labels["start"], 3),
                "end": round(u.labels["end"], 3),
                "score": scores[u.id],
                "probability_spoofed": probability(scores[u.id], calibration, prior),
            }
            for u in parts
            if not u.labels.get("whole")
        ]
        whole = [scores[u.id] for u in parts if u.labels.get("whole")]
        score = whole[0] if whole else mean(point["score"] for point in curve)
        verdict = "real" if score > threshold else "spoofed"
        stretches = suspicious(curve, threshold)
        found[path] = {
            "score": score,
            "probability_spoofed": probability(score, calibration, prior),
            "prior_spoofed": prior,
            "threshold": threshold,
            "calibration": None if isnan(calibration.scale) else [calibration.scale, calibration.offset],
            "verdict": verdict,
            "score_of": "the whole file" if whole or len(curve) == 1 else f"the mean of {len(curve)} windows",
            "suspicious": stretches,
            "curve": curve,
            "notes": _notes(parts, verdict, stretches, calibration),
        }
    return found


def suspicious(curve: Sequence[Mapping[str, Any]], threshold: float) -> list[dict[str, Any]]:
    """The stretches whose windows do not count as real: start and end in seconds, mean probability, windows.

    Where windows overlap or touch, each stands for the time that is nearest to its middle; neighbours are merged.
    """
    edges = [curve[0]["start"]]
    for one, other in pairwise(curve):
        near = other["start"] <= one["end"] + 1e-6
        middle = (one["start"] + one["end"] + other["start"] + other["end"]) / 4
        edges += [middle, middle] if near else [one["end"], other["start"]]
    edges.append(curve[-1]["end"])
    spans = list(zip(edges[::2], edges[1::2], curve, strict=True))
    run, runs = 0, []
    for number, (start, _, point) in enumerate(spans):
        # A gap that no window covers ends a stretch too.
        run += number > 0 and start > spans[number - 1][1] + 1e-6
        runs.append((run, point["score"] <= threshold))
    found = []
    for (_, fake), group in groupby(range(len(spans)), key=lambda i: runs[i]):
        members = [spans[i] for i in group]
        if fake:
            given = [p for *_, point in members if (p := point["probability_spoofed"]) is not None]
            found.append(
                {
                    "start": round(members[0][0], 3),
                    "end": round(members[-1][1], 3),
                    "probability_spoofed": mean(given) if given else None,
                    "windows": len(members),
                }
            )
    return found


def _notes(
    parts: Sequence[Utterance], verdict: str, stretches: Sequence[Mapping[str, Any]], calibration: Calibration
) -> list[str]:
    notes = []
    repeated = [u for u in parts if "repeated" in u.labels]
    if repeated:
        seconds = repeated[0].labels["repeated"]
        notes.append(f"{seconds:.2f} s of speech are shorter than the window and were repeated to fill it.")
    if verdict == "real" and stretches:
        count = f"{len(stretches)} stretches" if len(stretches) > 1 else "one stretch"
        notes.append(f"As a whole it counts as real, but {count} would not.")
    if isnan(calibration.scale):
        notes.append("The run is older than calibration, so there are no probabilities: run it again.")
    return notes
