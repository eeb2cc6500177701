"""What each judge says of a list of conversions, and of the two anchors in their place.

Every function returns measure -> condition -> one value for each conversion, in the order of the list; None = there is
none. The conditions are `CONDITIONS`; see `score` for what they mean.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from downstreams.voice_conversion.judges import QualityJudge, WordJudge
from downstreams.voice_conversion.score_list import Conversion
from downstreams.voice_conversion.score_speech import Speech, as_array
from downstreams.voice_conversion.score_voices import Voices
from speechssl.errors import ManifestError
from speechssl.metric.conversion import MEASURES, Recording, analyse_recording, compare_analysed
from speechssl.metric.mel_cepstrum import WIDE_RANGE, WorldSettings, find_f0_range
from speechssl.progress import Advance

CONDITIONS = ("converted", "unconverted", "copy synthesis")
F0_SECONDS = 60.0
"""Of a target's speech, in which the range of its F0 is looked for."""

ANALYSES = 256
"""Analyses that stay in memory, some 1 MB each: pairs share sources and recordings of targets."""

Values = dict[str, dict[str, list[Any]]]


@dataclass(frozen=True)
class Spoken:
    """What is judged."""

    conversions: Sequence[Conversion]
    speech: Speech
    advance: Advance

    @property
    def conditions(self) -> tuple[str, ...]:
        """Without a vocoder there is no upper anchor."""
        return CONDITIONS if self.speech.vocoder is not None else CONDITIONS[:2]

    def tell(self, judge_one: Callable[[Conversion], Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Condition -> what is said of each conversion; a condition that is not answered has None."""
        found: dict[str, list[Any]] = {condition: [] for condition in self.conditions}
        for conversion in self.conversions:
            answer = judge_one(conversion)
            for condition, values in found.items():
                values.append(answer.get(condition))
            self.advance()
        return found


@dataclass(frozen=True)
class Facts:
    """What the numbers depend on, and what could not be measured."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


def measure_voices(
    spoken: Spoken, judge: Any, threshold: float | None = None, prefix: str = ""
) -> tuple[Values, Facts]:
    """similarity, source_similarity, nearer_target and acceptance by one judge of voices.

    Args:
        judge: has `embed`, (S,) at 16 kHz -> a vector of unit length.
        threshold: of acceptance; None = where the judge errs equally often on the list's real speech.
        prefix: of the measures' names.
    """
    voices = Voices(spoken.conversions, spoken.speech, judge)
    settings: dict[str, Any] = {}
    notes: list[str] = []
    if threshold is None:
        calibration = voices.calibrate()
        if calibration is None:
            notes.append(
                f"No {prefix}acceptance: a threshold needs two files or 4 s of a target, and another speaker; or give "
                "it with --set threshold=0.7."
            )
        else:
            rate, threshold, trials = calibration
            settings = {f"{prefix}eer": rate, f"{prefix}trials": trials}
    if threshold is not None:
        settings[f"{prefix}threshold"] = threshold

    def judge_one(conversion: Conversion) -> dict[str, tuple[float, float]]:
        profile, source = voices.profile(conversion.targets), voices.embed(conversion.source)
        answers = {
            "converted": (voices.embed(conversion.converted), profile),
            "unconverted": (source, profile),
        }
        if (held_out := voices.held_out(conversion)) is not None:
            answers["copy synthesis"] = held_out
        return {name: (float(own @ other), float(own @ source)) for name, (own, other) in answers.items()}

    found = spoken.tell(judge_one)
    if "copy synthesis" in found and None in found["copy synthesis"]:
        count = found["copy synthesis"].count(None)
        notes.append(f"On {count_lines(count)} no upper anchor: the target has one file below 4 s.")
    values: Values = {
        f"{prefix}similarity": _each(found, lambda pair: pair[0]),
        f"{prefix}source_similarity": _each(found, lambda pair: pair[1]),
        f"{prefix}nearer_target": _each(found, lambda pair: pair[0] > pair[1]),
    }
    if threshold is not None:
        least = threshold
        values[f"{prefix}acceptance"] = _each(found, lambda pair: pair[0] > least)
    return values, Facts(settings, notes)


def measure_words(spoken: Spoken, judge: WordJudge) -> tuple[Values, Facts]:
    """wer and cer, as pairs of what should be heard and what is."""
    heard: dict[tuple[Path, str], str] = {}
    speech = spoken.speech

    def listen(path: Path, condition: str) -> str:
        if (path, condition) not in heard:
            waveform = speech.copy(path) if condition == "copy synthesis" else speech.read(path)
            heard[path, condition] = judge.transcribe(waveform)
        return heard[path, condition]

    def judge_one(conversion: Conversion) -> dict[str, tuple[str, str]]:
        if conversion.text is None:
            return {}
        text = judge.normalize(conversion.text)
        if not text:
            raise ManifestError(f"{conversion.where} has the text '{conversion.text}', which holds no word: mend it.")
        files = dict.fromkeys(spoken.conditions, conversion.source) | {"converted": conversion.converted}
        return {condition: (text, listen(path, condition)) for condition, path in files.items()}

    found = spoken.tell(judge_one)
    return {"wer": found, "cer": found}, Facts()


def measure_quality(spoken: Spoken, judge: QualityJudge) -> tuple[Values, Facts]:
    """quality."""
    known: dict[tuple[Path, str], float] = {}
    speech = spoken.speech

    def rate(path: Path, condition: str) -> float:
        if (path, condition) not in known:
            known[path, condition] = judge.score(
                speech.copy(path) if condition == "copy synthesis" else speech.read(path)
            )
        return known[path, condition]

    def judge_one(conversion: Conversion) -> dict[str, float]:
        files = {"converted": conversion.converted, "unconverted": conversion.source}
        if speech.vocoder is not None:
            files["copy synthesis"] = conversion.parallel or conversion.targets[0]
        return {condition: rate(path, condition) for condition, path in files.items()}

    return {"quality": spoken.tell(judge_one)}, Facts()


def measure_parallel(
    spoken: Spoken, analysis: WorldSettings | None = None, energy: bool = True
) -> tuple[Values, Facts]:
    """mcd, f0_rmse, f0_correlation and ddur beside the target's own recording.

    Args:
        analysis: None = S3PRL's.
        energy: whether c0 counts in the MCD.
    """
    speech = spoken.speech
    rate = speech.common_rate(spoken.conversions)
    reasons: Counter[str] = Counter()
    ranges: dict[tuple[Path, ...], tuple[float, float]] = {}

    @lru_cache(maxsize=ANALYSES)
    def analysed(path: Path, condition: str, f0_range: tuple[float, float]) -> Recording:
        waveform = speech.copy(path, rate) if condition == "copy synthesis" else speech.read(path, rate)
        return analyse_recording(as_array(waveform), rate, f0_range=f0_range, settings=analysis)

    def judge_one(conversion: Conversion) -> dict[str, Any]:
        if conversion.parallel is None:
            return {}
        known = (*conversion.targets, conversion.parallel)
        if conversion.f0_range is None and known not in ranges:
            ranges[known] = _f0_range(speech, known, rate)
        files = {"converted": conversion.converted, "unconverted": conversion.source}
        if speech.vocoder is not None:
            files["copy synthesis"] = conversion.parallel
        f0_range = conversion.f0_range or ranges[known]
        reference = analysed(conversion.parallel, "parallel", f0_range)
        found = {}
        for condition, path in files.items():
            found[condition] = compare_analysed(analysed(path, condition, f0_range), reference, energy=energy)
            said = "source" if condition == "unconverted" else condition.replace("converted", "conversion")
            for why in sorted(set(found[condition].undefined.values())):
                names = [m for m, reason in found[condition].undefined.items() if reason == why]
                reasons[f"{', '.join(names)}: {why.replace('conversion', said)}"] += 1
        return found

    found = spoken.tell(judge_one)
    values: Values = {name: _each(found, attrgetter(name)) for name in MEASURES}
    notes = [f"On {count_lines(count)} no {reason}." for reason, count in reasons.items()]
    order = (analysis or WorldSettings()).order
    return values, Facts({"sample_rate": rate, "mcd_order": order, "mcd_energy": energy}, notes)


def count_lines(count: int) -> str:
    """'1 line', '2 lines'."""
    return f"{count} line" if count == 1 else f"{count} lines"


def _f0_range(speech: Speech, paths: Sequence[Path], rate: int) -> tuple[float, float]:
    waveforms: list[Any] = []
    seconds = 0.0
    for path in paths:
        if seconds < F0_SECONDS:
            waveforms.append(as_array(speech.read(path, rate)[: int(F0_SECONDS * rate)]))
            seconds += len(waveforms[-1]) / rate
    return find_f0_range(waveforms, rate) or WIDE_RANGE


def _each(found: Mapping[str, Sequence[Any]], take: Callable[[Any], Any]) -> dict[str, list[Any]]:
    """Takes a number out of every answer."""
    return {name: [None if value is None else take(value) for value in values] for name, values in found.items()}
