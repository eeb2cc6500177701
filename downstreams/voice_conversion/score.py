"""`speechssl score voice_conversion LIST`: what independent judges, and the target's own recordings, say of conversions
that anybody made.

Three conditions are measured alike: what was 'converted'; 'unconverted', the source put in its place, below which no
conversion need fall; and 'copy synthesis', real speech through a vocoder, which none that uses one should pass: the
target's for the voice, the quality and the distances, the source's for the words.

* A target's profile is the mean embedding of its files. The speech behind the upper anchor is never in the profile it
  is compared with: it is the parallel recording, or the first of several files, or the second half of the only one.
* The threshold of acceptance is where the judge of voices errs equally often on the list's own real speech: each file
  of a target against the profile of its others, all other speakers' files and the sources against it.
* MCD and F0 are measured at the lowest sampling rate among conversions and parallel recordings, so that bands that one
  of them does not have count nowhere.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from downstreams.voice_conversion import ecapa, judges
from downstreams.voice_conversion.score_list import Conversion, read_conversions
from downstreams.voice_conversion.score_measures import (
    CONDITIONS,
    Spoken,
    count_lines,
    measure_parallel,
    measure_quality,
    measure_voices,
    measure_words,
)
from downstreams.voice_conversion.score_speech import Speech, check_audio
from speechssl.devices import resolve_devices
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.metric.interval import mean_interval
from speechssl.metric.mel_cepstrum import WorldSettings
from speechssl.metric.transcription import character_errors, word_errors
from speechssl.progress import progress
from speechssl.result import MetricValue
from speechssl.scoring import Measure, ScoreOptions, Scores
from speechssl.vocoder import load_vocoder

VOICE = {
    "similarity": Measure("cosine to the target's profile", "higher"),
    "source_similarity": Measure("cosine to the source", "lower"),
    "nearer_target": Measure("share nearer to the target than to the source", "higher", "share"),
    "acceptance": Measure("share above the judge's equal-error threshold", "higher", "share"),
}
WORDS = {
    "wer": Measure("word error rate", "lower", "share"),
    "cer": Measure("character error rate", "lower", "share"),
}
PARALLEL = {
    "mcd": Measure("mel-cepstral distortion", "lower", "dB"),
    "f0_rmse": Measure("root mean square error of F0", "lower", "Hz"),
    "f0_correlation": Measure("correlation of F0", "higher"),
    "ddur": Measure("difference of duration without silence", "lower", "s"),
}
MEASURES = {
    **VOICE,
    **{f"ecapa_{name}": measure for name, measure in VOICE.items()},
    **WORDS,
    "quality": Measure("predicted mean opinion score, 1 to 5", "higher"),
    **PARALLEL,
}
FILES = "LIST"
SETTINGS = {
    "vocoder": "of the upper anchor: auto, hifigan, griffin_lim, none, or a folder or checkpoint",
    "threshold": "of acceptance by similarity, in place of the one of equal errors",
    "sample_rate": "of MCD and F0, Hz",
    "mcd_order": "mel-cepstral coefficients beside c0: 39, or 24 as is common too",
    "mcd_energy": "whether c0 counts: yes or no",
}
JUDGES: dict[str, Callable[[str], Any]] = {
    "voice": lambda device: judges.load_speaker_judge(device=device),
    "ecapa": lambda device: ecapa.load_ecapa_judge(device=device),
    "words": lambda device: judges.load_word_judge(device=device),
    "quality": lambda device: judges.load_quality_judge(),  # noqa: ARG005  runs where onnxruntime does
}
"""Judge -> what loads it on a device."""


def score(files: Sequence[Path], options: ScoreOptions) -> Scores:
    """Scores the conversions of one list.

    Raises:
        SpeechsslError: anything wrong with the list, a file, a setting or a judge.
    """
    if len(files) != 1:
        raise ConfigError(f"Conversions are scored from one list, but {len(files)} files were given.")
    device = str(resolve_devices(options.device)[0])
    conversions = read_conversions(files[0])
    check_audio(conversions)
    wanted, notes = _choose(conversions, options.measures, files[0])
    threshold, sample_rate = _numbers(options.settings)
    cepstra = _cepstra(options.settings)
    kind = options.settings.get("vocoder", "auto")
    vocoder = None if kind == "none" else load_vocoder(kind)
    speech = Speech(vocoder, sample_rate)
    settings: dict[str, Any] = {
        "list": files[0].name, "conversions": len(conversions), "vocoder": None if vocoder is None else vocoder.name,
    }  # fmt: skip
    found: dict[str, dict[str, list[Any]]] = {}
    stages = [judge for judge, names in _judges(wanted).items() if names]
    with progress("Scoring conversions", len(stages) * len(conversions), unit="conversions") as advance:
        for judge in stages:
            spoken = Spoken(conversions, speech, advance)
            if judge == "parallel":
                measured, facts = measure_parallel(spoken, *cepstra)
            elif judge == "words":
                measured, facts = measure_words(spoken, _load(judge, device))
            elif judge == "quality":
                measured, facts = measure_quality(spoken, _load(judge, device))
            else:
                prefix = "" if judge == "voice" else f"{judge}_"
                own = threshold if judge == "voice" else None
                measured, facts = measure_voices(spoken, _load(judge, device), own, prefix)
            found.update(measured)
            settings.update(facts.settings)
            notes += facts.notes
    metrics = {name: _summarise(name, found) for name in wanted if name in found}
    items = [_item(row, conversion, wanted, found) for row, conversion in enumerate(conversions)]
    return Scores(f"{len(conversions)} conversions", metrics, items, settings, tuple(notes))


def _choose(conversions: Sequence[Conversion], asked: Sequence[str], path: Path) -> tuple[tuple[str, ...], list[str]]:
    """The measures that are taken, in the order of MEASURES, and what is said of those that are not."""
    needs: dict[str, Mapping[str, Measure]] = {"text": WORDS, "parallel": PARALLEL}
    lacking, notes = set(), []
    for column, measures in needs.items():
        absent = [c for c in conversions if getattr(c, column) is None]
        explicit = [name for name in asked if name in measures]
        if asked and not explicit:
            continue
        if len(absent) == len(conversions):
            if explicit:
                raise ConfigError(f"`{explicit[0]}` needs the column '{column}', which {path} does not fill.")
            lacking |= set(measures)
            notes.append(f"No {', '.join(measures)}: no line fills the column '{column}'.")
        elif absent:
            notes.append(f"{count_lines(len(absent))} without '{column}', such as {absent[0].where.rstrip(',')}.")
    return tuple(name for name in MEASURES if name in (asked or MEASURES) and name not in lacking), notes


def _numbers(settings: Mapping[str, str]) -> tuple[float | None, int | None]:
    """Threshold and sampling rate."""
    try:
        threshold = None if "threshold" not in settings else float(settings["threshold"])
    except ValueError as error:
        raise ConfigError(f"`threshold` must be a number, but is '{settings['threshold']}'.") from error
    rate = settings.get("sample_rate")
    if rate is not None and not (rate.isdigit() and 8_000 <= int(rate) <= 96_000):
        raise ConfigError(f"`sample_rate` must be from 8000 to 96000 Hz, but is '{rate}'.")
    return threshold, None if rate is None else int(rate)


def _cepstra(settings: Mapping[str, str]) -> tuple[WorldSettings, bool]:
    """How the MCD is measured: the analysis, and whether c0 counts."""
    order, energy = settings.get("mcd_order", str(WorldSettings().order)), settings.get("mcd_energy", "yes")
    if not (order.isdigit() and 1 <= int(order) <= 100):
        raise ConfigError(f"`mcd_order` must be from 1 to 100, but is '{order}'.")
    if energy not in ("yes", "no"):
        raise ConfigError(f"`mcd_energy` must be yes or no, but is '{energy}'.")
    return WorldSettings(order=int(order)), energy == "yes"


def _judges(wanted: Sequence[str]) -> dict[str, list[str]]:
    """Judge -> the measures that are wanted of it."""
    sides: dict[str, Sequence[str]] = {
        "voice": tuple(VOICE), "ecapa": [f"ecapa_{n}" for n in VOICE], "words": tuple(WORDS),
        "quality": ("quality",), "parallel": tuple(PARALLEL),
    }  # fmt: skip
    return {judge: [name for name in wanted if name in names] for judge, names in sides.items()}


def _load(judge: str, device: str) -> Any:
    try:
        return JUDGES[judge](device)
    except SpeechsslError as error:
        reason = str(error).rstrip(".")
        raise SpeechsslError(f"{reason}; or choose measures that don't need it with --measure.") from error


def _summarise(name: str, found: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, MetricValue]:
    """Condition -> mean over the conversions that have a value; error rates are pooled."""
    summary = {}
    for condition, values in found[name].items():
        present = [value for value in values if value is not None]
        if not present:
            continue
        if name in WORDS:
            counts = (word_errors if name == "wer" else character_errors)(*zip(*present, strict=True))
            summary[condition] = counts.rate()
        else:
            low, high = mean_interval(present)
            mean = sum(map(float, present)) / len(present)
            summary[condition] = MetricValue(mean, len(present), "conversions", low, high)
    return summary


def _item(
    row: int, conversion: Conversion, wanted: Sequence[str], found: Mapping[str, Mapping[str, Sequence[Any]]]
) -> dict[str, Any]:
    """The line of a conversion: its files, then each measure in each condition."""
    item: dict[str, Any] = {
        "converted": conversion.converted,
        "source": conversion.source,
        "target": ";".join(map(str, conversion.targets)),
    }
    for name in (n for n in wanted if n in found):
        for condition in CONDITIONS:
            if condition not in found[name]:
                continue
            value = found[name][condition][row]
            if name in WORDS and value is not None:
                errors = (word_errors if name == "wer" else character_errors)([value[0]], [value[1]])
                value = errors.errors[0] / errors.units[0]
            column = name if condition == "converted" else f"{name} ({condition})"
            item[column] = value
    if "wer" in found or "cer" in found:
        heard = found["wer" if "wer" in found else "cer"]["converted"][row]
        item["text"], item["heard"] = heard or (None, None)
    return item
