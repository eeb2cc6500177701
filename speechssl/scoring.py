"""Scoring of finished audio or scores, without any run: what `speechssl score` asks of a task.

A task that can be scored has a module `score.py` with

    FILES        what it reads, in a few words, such as 'LIST'
    MEASURES     name -> Measure: all that it can measure
    SETTINGS     name -> what it sets
    score(files, options) -> Scores
    USES_DEV     True where it learns from other trials (`--dev`); may be left out

and is found as `registry.task_module(task, "score")`.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from speechssl.errors import ConfigError, SpeechsslError, UnknownNameError, suggest
from speechssl.files import check_writable, replacing
from speechssl.registry import list_tasks, task_module
from speechssl.result import MetricValue

Unit = Literal["share", "dB", "Hz", "s", ""]
FILES = ("scores.json", "items.tsv")
"""What is written, the latter where there are items."""


@dataclass(frozen=True)
class Measure:
    """What a number means."""

    about: str
    """In a few words."""
    better: Literal["higher", "lower"]
    unit: Unit = ""
    """'share' is a fraction that tables show in %."""
    digits: int | None = None
    """Behind the point in tables; None = as many as such a unit mostly bears."""


@dataclass(frozen=True)
class ScoreOptions:
    """What the user asked for."""

    measures: tuple[str, ...] = ()
    """None given = all that the files allow."""
    device: str = "cpu"
    settings: Mapping[str, str] = field(default_factory=dict)
    """Of the task, such as {'vocoder': 'griffin_lim'}."""
    dev: tuple[Path, ...] = ()
    """Files of the same kinds, of other trials, by which calibration and fusion are learned."""


@dataclass(frozen=True)
class Scores:
    """What was measured."""

    what: str
    """Such as '12 conversions'."""
    metrics: Mapping[str, Mapping[str, MetricValue]]
    """Measure -> condition -> value; every measure has the same conditions or some of them."""
    items: Sequence[Mapping[str, Any]]
    """One for each line of the input, with the same keys; None = not measured. None at all = no table of them."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the numbers depend on."""
    notes: tuple[str, ...] = ()
    """Sentences about what could not be measured, and why."""
    breakdown: Mapping[str, Mapping[str, Mapping[str, Mapping[str, MetricValue]]]] = field(default_factory=dict)
    """Property, such as 'attack' -> its values -> measure -> condition -> value."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Further files: name -> text."""


class ScoreModule(Protocol):
    """The type of a task's `score.py`."""

    FILES: str
    MEASURES: Mapping[str, Measure]
    SETTINGS: Mapping[str, str]

    def score(self, files: Sequence[Path], options: ScoreOptions) -> Scores:
        """Measures what the files name."""


def score_module(task: str) -> ScoreModule:
    """The module of a task that can be scored.

    Raises:
        UnknownNameError: no such task.
        SpeechsslError: it can't be scored.
    """
    if task not in list_tasks():
        raise UnknownNameError("task", task, list_tasks())
    try:
        return cast(ScoreModule, task_module(task, "score"))
    except ModuleNotFoundError as error:
        if task in scored_tasks():
            raise
        raise SpeechsslError(f"The task '{task}' can't score finished files.{suggest(task, scored_tasks())}") from error


def scored_tasks() -> list[str]:
    """The names of the tasks that have a `score.py`; nothing is imported but their packages."""
    import importlib.util

    found = []
    for task in list_tasks():
        package = task_module(task, "config").__package__
        if package and importlib.util.find_spec(f"{package}.score") is not None:
            found.append(task)
    return found


def run_score(
    task: str,
    files: Sequence[Path],
    *,
    measures: Sequence[str] = (),
    device: str = "cpu",
    settings: Sequence[str] = (),
    dev: Sequence[Path] = (),
    out: Path | None = None,
) -> tuple[ScoreModule, Scores]:
    """Scores files and writes what was found.

    Args:
        task: its name, or the first words of it where one task alone has them: 'deepfake'.
        measures: names, or several in one string with commas; none = all that the files allow.
        settings: such as 'vocoder=griffin_lim'.
        dev: files of other trials to learn calibration and fusion from, where the task does that.
        out: folder for scores.json, items.tsv and what the task adds; None = nothing is written.

    Raises:
        SpeechsslError: unknown names, or anything that is wrong with the files.
    """
    task = _whole_name(task)
    module = score_module(task)
    wanted = tuple(dict.fromkeys(n.strip() for text in measures for n in text.split(",") if n.strip()))
    for name in wanted:
        if name not in module.MEASURES:
            raise UnknownNameError("measure", name, module.MEASURES)
    if out is not None:
        check_writable(out)
    if dev and not getattr(module, "USES_DEV", False):
        raise ConfigError(f"The task '{task}' learns nothing from --dev: leave it out.")
    options = ScoreOptions(wanted, device, _read_settings(settings, module.SETTINGS), tuple(dev))
    scores = module.score(files, options)
    if out is not None:
        write_scores(scores, task, out)
    return module, scores


def _whole_name(task: str) -> str:
    if task in list_tasks():
        return task
    found = [name for name in scored_tasks() if name.startswith(f"{task}_")]
    return found[0] if len(found) == 1 else task


def split_settings(texts: Sequence[str]) -> dict[str, str]:
    """'name=value' each -> name -> value."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise ConfigError(f"A setting must be given as NAME=VALUE, but is '{text}'.")
        found[name] = value
    return found


def _read_settings(texts: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    found = split_settings(texts)
    for name in found:
        if name not in known:
            raise ConfigError(f"Unknown setting '{name}'.{suggest(name, known)}")
    return found


def write_scores(scores: Scores, task: str, folder: Path) -> None:
    """Writes scores.json (all but the items), items.tsv (one line each) and what the task adds into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {m: {c: asdict(v) for c, v in found.items()} for m, found in scores.metrics.items()}
    content: dict[str, Any] = {
        "task": task, "what": scores.what, "metrics": metrics, "settings": dict(scores.settings),
        "notes": list(scores.notes),
    }  # fmt: skip
    if scores.breakdown:
        content["breakdown"] = {
            name: {
                value: {m: {c: asdict(v) for c, v in found.items()} for m, found in measures.items()}
                for value, measures in groups.items()
            }
            for name, groups in scores.breakdown.items()
        }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    for name, written in {FILES[0]: text + "\n", **scores.files}.items():
        with replacing(folder / name) as partial:
            partial.write_text(written, encoding="utf-8")
    if not scores.items:
        return
    with replacing(folder / FILES[1]) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, escapechar="\\")
        writer.writerow(scores.items[0])
        writer.writerows([_cell(value) for value in item.values()] for item in scores.items)


def written_files(scores: Scores) -> list[str]:
    """The names of what `write_scores` writes."""
    return [FILES[0], *(FILES[1:] if scores.items else ()), *scores.files]


def _cell(value: Any) -> str:
    """Six digits of a number, nothing where there is none; tabs and line ends become blanks."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())


def show_value(value: MetricValue, unit: Unit, digits: int | None = None) -> str:
    """'91.7 % [83.3, 100.0]', '7.41 dB [7.10, 7.75]'."""
    scale = 100.0 if unit == "share" else 1.0
    if digits is None:
        digits = 1 if unit == "share" else 3 if unit == "" else 2
    ends = [x for x in (value.low, value.high) if x is not None and math.isfinite(x)]
    interval = f" [{', '.join(f'{scale * x:.{digits}f}' for x in ends)}]" if len(ends) == 2 else ""
    name = {"share": " %", "": ""}.get(unit, f" {unit}")
    return f"{scale * value.value:.{digits}f}{name}{interval}"
