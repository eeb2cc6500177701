"""What small probes read from each layer: phones, speakers, tones, genders, languages, pitch, energy, durations."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from speechssl.analysis.gather import Gathered, Rows
from speechssl.analysis.labels import frame_codes, label_set
from speechssl.analysis.material import Material
from speechssl.analysis.probes import Probe, ProbeConfig, Samples, probe_classes, probe_value, split_groups
from speechssl.analysis.result import LayerValue, Measure
from speechssl.analysis.settings import AnalysisSettings
from speechssl.errors import SpeechsslError
from speechssl.progress import progress
from speechssl.result import MetricValue

logger = logging.getLogger(__name__)
CONTROLS = "linear, on standardised features; controls after Hewitt and Liang 2019, arXiv:1909.03368"
FEWEST = 6
"""Utterances of a class that a probe of whole utterances is to tell."""
TITLES = {
    "phone": "Phones of frames, accuracy",
    "speaker": "Speakers of utterances, accuracy",
    "language": "Languages of utterances, accuracy",
    "gender": "Genders of utterances, accuracy",
    "tone": "Tones of utterances, accuracy",
    "pitch": "Pitch (log F0) of voiced frames, R²",
    "energy": "Energy (dB) of frames, R²",
    "duration": "Durations of phones, R² of their logarithm",
}
NUMBERS = ("pitch", "energy", "duration")


@dataclass(frozen=True)
class _Question:
    """What a probe is asked."""

    rows: Rows
    answers: NDArray[Any]
    """(N,) of each row."""
    groups: NDArray[Any]
    """(N,) which are in training or in test as a whole."""
    types: NDArray[Any] | None
    """(N,) for the control task."""
    grouped_by: str


def measure_probes(
    gathered: Gathered, material: Material, settings: AnalysisSettings
) -> tuple[list[Measure], list[str]]:
    """Accuracies or determinations with their selectivity, and sentences about what can't be asked."""
    questions = _questions(gathered, material)
    config = ProbeConfig(most_train=settings.probe_samples, most_test=settings.probe_samples, seed=settings.seed)
    measures: list[Measure] = []
    problems: list[str] = []
    with progress("Probing", len(questions) * len(gathered.layers), unit="layers") as advance:
        for name, question in questions.items():
            found: dict[int, Probe] = {}
            try:
                train, test = split_groups(question.groups, seed=settings.seed)
                for row, layer in enumerate(gathered.layers):
                    found[layer] = _probe(name, question, row, (train, test), config)
                    advance()
            except SpeechsslError as error:
                problems.append(f"{TITLES[name]}: can't be probed. {error}")
                continue
            measures += _measures(name, found, question)
    return measures, problems


def _probe(
    name: str, question: _Question, row: int, parts: tuple[NDArray[np.intp], NDArray[np.intp]], config: ProbeConfig
) -> Probe:
    states = question.rows.layer(row)
    train, test = (
        Samples(
            states[torch.from_numpy(index)], question.answers[index], question.groups[index],
            None if question.types is None else question.types[index],
        )
        for index in parts
    )  # fmt: skip
    return probe_value(train, test, config) if name in NUMBERS else probe_classes(train, test, config)


def _measures(name: str, found: dict[int, Probe], question: _Question) -> list[Measure]:
    unit = "" if name in NUMBERS else "share"
    first = next(iter(found.values()))
    known = f"{len(set(question.answers.tolist()))} classes, the most frequent one {100 * first.baseline:.1f} %; "
    source = f"{'' if name in NUMBERS else known}{CONTROLS}; training and test have no {question.grouped_by} in common"
    scores = [_value(layer, p.score, p.note) for layer, p in found.items()]
    selective = [_value(layer, p.selectivity, "") for layer, p in found.items() if p.selectivity is not None]
    measures = [Measure(f"probe/{name}", TITLES[name], unit, "up", source, scores)]
    if selective:
        title = f"{TITLES[name].split(',')[0]}, selectivity"
        measures.append(Measure(f"probe/{name} selectivity", title, unit, "up", source, selective))
    return measures


def _value(layer: int, value: MetricValue, note: str) -> LayerValue:
    return LayerValue(layer, value.value, value.low, value.high, value.n, note)


def _questions(gathered: Gathered, material: Material) -> dict[str, _Question]:
    """All that the labels allow."""
    found: dict[str, _Question] = {}
    voices = np.array([str(material.by_id[i].labels.get("speaker") or "") for i in gathered.ids], dtype=object)
    if len(gathered.phones):
        found["phone"] = _of_frames(
            gathered.phones, np.array(gathered.phones.names, dtype=object)[gathered.phones.code], voices, gathered,
            _words_of(gathered, material),
        )  # fmt: skip
    for name in ("speaker", "language", "gender", "tone"):
        question = _of_utterances(name, gathered, material, voices)
        if question is not None:
            found[name] = question
    frames = gathered.frames
    heard = {name: _heard(name, gathered, material) for name in ("pitch", "energy")} if len(frames) else {}
    for name, values in heard.items():
        known = np.flatnonzero(np.isfinite(values))
        if len(known) > 100:
            found[name] = _of_frames(frames.take(known), values[known], voices, gathered, None)
    if len(gathered.phone_segments):
        length = np.log(np.maximum(gathered.phone_segments.length, 1e-3))
        kinds = np.array(gathered.phone_segments.names, dtype=object)[gathered.phone_segments.code]
        found["duration"] = _of_frames(gathered.phone_segments, length, voices, gathered, kinds)
    return found


def _of_frames(
    rows: Rows, answers: NDArray[Any], voices: NDArray[Any], gathered: Gathered, types: NDArray[Any] | None
) -> _Question:
    """Of frames or segments: apart by speaker where there are several that are known, else by utterance."""
    speakers = voices[rows.utterance]
    known = set(speakers.tolist())
    if len(known) > 2 and "" not in known:
        return _Question(rows, answers, speakers, types, "speaker")
    return _Question(rows, answers, np.array(gathered.ids, dtype=object)[rows.utterance], types, "utterance")


def _of_utterances(name: str, gathered: Gathered, material: Material, voices: NDArray[Any]) -> _Question | None:
    """Of whole utterances: apart by speaker where each class has several, else by utterance."""
    values = material.values(name)
    held = np.array([values.get(i, "") for i in gathered.ids], dtype=object)
    classes = [c for c in sorted(set(held.tolist())) if c and (held == c).sum() >= FEWEST]
    index = np.flatnonzero(np.isin(held, classes))
    if len(classes) < 2:
        return None
    rows, answers, speakers = gathered.utterances.take(index), held[index], voices[index]
    several = all(len(set(speakers[answers == c].tolist()) - {""}) > 1 for c in classes)
    if name != "speaker" and several and "" not in set(speakers.tolist()):
        return _Question(rows, answers, speakers, speakers, "speaker")
    texts = np.array(
        [str(material.by_id[gathered.ids[i]].labels.get("text") or gathered.ids[i]) for i in index.tolist()]
    )
    types = texts if name == "tone" else None
    return _Question(rows, answers, np.array(gathered.ids, dtype=object)[index], types, "utterance")


def _heard(name: str, gathered: Gathered, material: Material) -> NDArray[np.float64]:
    """log F0 or energy of the kept frames, NaN where there is none."""
    rows = gathered.frames
    values = np.full(len(rows), np.nan)
    for utterance in np.unique(rows.utterance):
        index = np.flatnonzero(rows.utterance == utterance)
        heard = material.acoustics[gathered.ids[utterance]].at(name, rows.place[index], gathered.frame_rate)
        values[index] = np.log(heard) if name == "pitch" else heard
    return values


def _words_of(gathered: Gathered, material: Material) -> NDArray[Any] | None:
    """The word that each frame with a phone is in, for its control task; None where words are not known."""
    track = material.labels.of("word")
    if not track:
        return None
    names: Sequence[str] = label_set(track)
    number = {name: k for k, name in enumerate(names)}
    rows = gathered.phones
    words = np.full(len(rows), -1, dtype=np.int64)
    for utterance in np.unique(rows.utterance):
        index = np.flatnonzero(rows.utterance == utterance)
        spans = track.get(gathered.ids[utterance], ())
        codes = frame_codes(spans, number, frames=int(rows.place[index].max()) + 1, frame_rate=gathered.frame_rate)
        words[index] = codes[rows.place[index]]
    return words * 1000 + rows.code  # a phone of a word; a word alone would have one answer for several phones
