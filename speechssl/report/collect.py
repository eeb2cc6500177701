"""Finds finished runs, scores and pre-training logs below some folders, and says what could not be read."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechssl.errors import ManifestError
from speechssl.result import MetricValue, RunResult, load_result

TASK_FILES = ("task.json", "result.json")
"""What marks a folder as the run of a task, whose own log is no pre-training log."""


@dataclass(frozen=True)
class Run:
    """One finished run and the folder that its artifacts lie in."""

    folder: Path
    result: RunResult


@dataclass(frozen=True)
class Pretraining:
    """The log of one pre-training run."""

    folder: Path
    name: str
    """Its folder, as seen from where the search began."""
    columns: Mapping[str, Sequence[tuple[int, float]]]
    """Logged key -> (step, value), steps ascending; after a resume the later entry of a step counts."""
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Scored:
    """What `speechssl score` says of finished files."""

    name: str
    """Its folder, as seen from where the search began."""
    task: str
    metrics: Mapping[str, Mapping[str, MetricValue]]
    """Metric -> condition -> value."""
    notes: Sequence[str]


@dataclass(frozen=True)
class Collection:
    """Everything that a report is made of."""

    runs: Sequence[Run]
    pretraining: Sequence[Pretraining]
    problems: Sequence[str]
    """One sentence for each file that is missing, unreadable or left out."""
    scored: Sequence[Scored] = ()


def collect(folders: Sequence[Path]) -> Collection:
    """Searches folders recursively for `result.json`, `scores.json`, and `log.jsonl` of pre-training.

    A broken file is named in `problems`; it never stops the report.

    Raises:
        ManifestError: a folder does not exist, or nothing at all was found.
    """
    problems: list[str] = []
    runs = [r for path, _ in _find(folders, "result.json") if (r := _run(path, problems)) is not None]
    logs = [p for path, root in _find(folders, "log.jsonl") if (p := _pretraining(path, root, problems)) is not None]
    scored = [s for path, root in _find(folders, "scores.json") if (s := _scored(path, root, problems)) is not None]
    if not runs and not logs and not scored:
        where = ", ".join(str(f) for f in folders)
        reason = " ".join(problems) or "run a task first."
        raise ManifestError(f"There is no readable result.json or pre-training log below {where}: {reason}")
    kept, dropped = _newest(runs)
    return Collection(kept, sorted(logs, key=lambda p: p.name), [*problems, *dropped], scored)


def _find(folders: Sequence[Path], name: str) -> Iterator[tuple[Path, Path]]:
    """Yields (file, folder it was found below), each file once."""
    seen: set[Path] = set()
    for folder in folders:
        if not folder.exists():
            raise ManifestError(f"The folder {folder} does not exist: name the folder that `speechssl run` wrote to.")
        root = folder if folder.is_dir() else folder.parent
        for path in sorted(root.rglob(name)) if folder.is_dir() else [folder] * (folder.name == name):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                yield path, root


def _run(path: Path, problems: list[str]) -> Run | None:
    try:
        result = load_result(path)
        _check(result)
    except (ManifestError, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        known = isinstance(error, ManifestError)
        problems.append(str(error) if known else f"The result {path} can't be read ({error}): run the task again.")
        return None
    return Run(path.parent, result)


def _check(result: RunResult) -> None:
    """Raises TypeError or ValueError where a field that parses as JSON is not what the report needs."""
    for split in (result.dev, result.test):
        if result.metric not in split.metrics:
            raise ValueError(f"it does not hold its own metric '{result.metric}'")
    if not math.isfinite(result.test.metrics[result.metric].value):
        raise ValueError(f"its '{result.metric}' is not finite")
    for points in result.curves.values():
        for step, value in points:
            float(step), float(value)
    dict(result.corpus), dict(result.seconds), dict(result.features), list(result.layer_weights)


def _newest(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Keeps the newest run of each task, head, upstream, corpus, fold and seed."""
    kept: dict[tuple[str, str, str, int, int], Run] = {}
    dropped = []
    for run in sorted(runs, key=lambda r: r.result.date):
        result = run.result
        key = (result.column, result.upstream.label, corpus_key(result), result.fold, result.seed)
        if key in kept:
            dropped.append(
                f"{kept[key].folder} is left out: {run.folder} holds a newer run of the same task, upstream and seed."
            )
        kept[key] = run
    return sorted(
        kept.values(), key=lambda r: (r.result.column, r.result.upstream.label, r.result.fold, r.result.seed)
    ), dropped


def corpus_key(result: RunResult) -> str:
    """What tells corpora apart: the fingerprint, or the name where there is none."""
    return str(result.corpus.get("fingerprint") or result.corpus.get("name", "?"))


def _pretraining(path: Path, root: Path, problems: list[str]) -> Pretraining | None:
    # The candidates of a sweep lie below their run.
    if any((folder / name).exists() for folder in (path.parent, *path.parents[1:3]) for name in TASK_FILES):
        return None
    columns: dict[str, dict[int, float]] = {}
    broken = 0
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"The log {path} can't be read ({error}): its curves are left out.")
        return None
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
            step = int(entry["step"])
        except (ValueError, KeyError, TypeError):
            # The last line of a run that was stopped may be cut off.
            broken += bool(line.strip()) and number < len(lines) - 1
            continue
        for key, value in entry.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                columns.setdefault(key, {})[step] = float(value)
    if broken:
        problems.append(f"{broken} of {len(lines)} lines of {path} can't be read and are left out of the curves.")
    if not any("loss" in key for key in columns):
        return None
    return Pretraining(
        path.parent, _name(path, root), {k: sorted(v.items()) for k, v in columns.items()}, _config(path.parent)
    )


def _name(path: Path, root: Path) -> str:
    return str(path.parent.relative_to(root)) if path.parent != root else root.resolve().name


def _scored(path: Path, root: Path, problems: list[str]) -> Scored | None:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        metrics = {
            str(metric): {str(condition): MetricValue(**value) for condition, value in values.items()}
            for metric, values in raw["metrics"].items()
        }
        return Scored(_name(path, root), str(raw["task"]), metrics, [str(note) for note in raw.get("notes", ())])
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        problems.append(f"The scores {path} can't be read ({error}): run `speechssl score` again.")
        return None


def _config(folder: Path) -> dict[str, Any]:
    try:
        loaded = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}
