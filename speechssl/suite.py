"""Suites: several tasks, each on its corpus, in one command and one table, as `speechssl run superb`.

A suite is a folder in `downstreams/` with `suite.py` and `SUITES`, name -> `Suite`. Corpora lie side by side in one
folder, each named as `speechssl prepare` calls it, or are all one corpus. The tasks share the feature cache; what is
finished is read, so that a suite that was interrupted goes on.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import DictConfig

from speechssl.config import from_dict, load_config, read_yaml
from speechssl.data.corpus import open_corpus
from speechssl.errors import ConfigError, ManifestError, UnknownNameError
from speechssl.files import replacing
from speechssl.jobs import RunOptions
from speechssl.registry import list_suites, suite_module
from speechssl.result import RunResult
from speechssl.runner import resolve_config, run
from speechssl.upstream_spec import UpstreamLike

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """Two published values of a metric, between which an upstream is placed."""

    low: float
    """Scores 0."""
    high: float
    """Scores 1000."""


@dataclass(frozen=True)
class Entry:
    """One task of a suite."""

    task: str
    """A preset of a task."""
    corpus: str
    """Its folder among the corpora, as `speechssl prepare` calls it."""
    references: Mapping[str, Reference] = field(default_factory=dict)
    """Metric -> where it stands in the score; none = the task does not count in it."""
    folds: tuple[int | str, ...] = ()
    """Their mean is the result; as `speechssl run --folds`."""


@dataclass(frozen=True)
class Suite:
    """Tasks that are run together, in this order."""

    entries: tuple[Entry, ...]
    score: str = ""
    """Name of what the references make of all tasks together; '' = there is none."""
    subset: float | None = None
    """Share of the utterances and steps, where nothing else is asked for."""


@dataclass(frozen=True)
class SuiteResult:
    """What a suite measured."""

    suite: str
    results: Mapping[str, Sequence[RunResult]]
    """Task -> its runs."""
    metrics: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Upstream -> task -> metric -> mean over seeds and folds, on test."""
    score: str
    scores: Mapping[str, float]
    """Upstream -> score, where every task that counts was run."""


def find_suite(name: str) -> Suite:
    """The suite of a name such as 'superb'.

    Raises:
        UnknownNameError: no such suite; near matches are named.
    """
    for folder in list_suites():
        suites: Mapping[str, Suite] = suite_module(folder).SUITES
        if name in suites:
            return suites[name]
    raise UnknownNameError("suite", name, suite_names())


def suite_names() -> list[str]:
    """The names of all suites."""
    return [name for folder in list_suites() for name in suite_module(folder).SUITES]


def run_suite(
    name: str,
    *,
    upstream: UpstreamLike | Sequence[UpstreamLike] | Mapping[str, UpstreamLike],
    corpora: str | Path,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    yaml: str | Path | None = None,
    overrides: Sequence[str] = (),
    sweep: str | None = None,
    subset: float | None = None,
    out: str | Path = "exp",
    random_weights: int | None = None,
    options: RunOptions | None = None,
) -> SuiteResult:
    """Runs every task of a suite and writes <out>/<name>.json after each.

    Args:
        upstream: as `speechssl.run` takes it.
        corpora: folder with one prepared corpus for each that is needed; or one prepared corpus, for all tasks.
        only: tasks to run; none = all. There is no score then, unless all that count are among them.
        yaml: file with settings per task, such as 'asr: {train: {steps: 1000}}'.
        overrides: of every task.
        sweep: as `speechssl.run` takes it; tasks without training are left as they are.
        subset: likewise; None = the suite's own.

    Raises:
        UnknownNameError: no such suite or task.
        ManifestError: corpora that are missing, all of them named before anything is computed.
    """
    suite = find_suite(name)
    entries = _chosen(name, suite, only)
    share = suite.subset if subset is None else subset
    settings = _settings(yaml, entries)
    folders = _corpora(Path(corpora), entries)
    results: dict[str, Sequence[RunResult]] = {}
    outcome = _outcome(name, suite, results)
    for entry in entries:
        task, config = resolve_config(entry.task, subset=share)
        config = from_dict(config, settings.get(entry.task, {}), origin=str(yaml))
        config = load_config(config, overrides=overrides)
        logger.info("%s: %s on %s", name, task, folders[entry.task])
        results[entry.task] = run(
            entry.task, upstream=upstream, corpus=folders[entry.task], seeds=seeds, config=config, folds=entry.folds,
            sweep=sweep if config.train.steps > 0 else None, out=out, random_weights=random_weights, options=options,
        )  # fmt: skip
        outcome = _outcome(name, suite, results)
        _save(outcome, Path(out) / f"{name}.json")
    return outcome


def suite_score(entries: Sequence[Entry], metrics: Mapping[str, Mapping[str, float]]) -> float | None:
    """Where an upstream stands between two references: 0 as the low, 1000 as the high ones.

    The mean over tasks of the mean over a task's metrics of (value - low) / (high - low), times 1000. Nothing is cut
    off: worse than the low reference is negative, better than the high one above 1000.

    Args:
        metrics: task -> metric -> value.

    Returns:
        None where a task that counts, or one of its metrics, is missing.

    Paper: Feng et al. 2022 (SUPERB @ SLT 2022), sec. 4, arXiv:2210.08634.
    """
    counted = [entry for entry in entries if entry.references]
    shares = []
    for entry in counted:
        found = metrics.get(entry.task, {})
        if not set(entry.references) <= set(found):
            return None
        shares.append(mean((found[m] - ref.low) / (ref.high - ref.low) for m, ref in entry.references.items()))
    return 1000.0 * mean(shares) if shares else None


def _outcome(name: str, suite: Suite, results: Mapping[str, Sequence[RunResult]]) -> SuiteResult:
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    for task, found in results.items():
        for label in dict.fromkeys(r.upstream.label for r in found):
            own = [r for r in found if r.upstream.label == label]
            metrics.setdefault(label, {})[task] = {
                metric: mean(r.test.metrics[metric].value for r in own) for metric in own[0].test.metrics
            }
    scores = {label: suite_score(suite.entries, own) for label, own in metrics.items()} if suite.score else {}
    return SuiteResult(name, dict(results), metrics, suite.score, {k: v for k, v in scores.items() if v is not None})


def _save(outcome: SuiteResult, path: Path) -> None:
    content = {name: value for name, value in vars(outcome).items() if name != "results"}
    content["date"] = max(r.date for found in outcome.results.values() for r in found)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def _chosen(name: str, suite: Suite, only: Sequence[str]) -> list[Entry]:
    known = [entry.task for entry in suite.entries]
    for task in only:
        if task not in known:
            raise UnknownNameError(f"task of '{name}'", task, known)
    return [entry for entry in suite.entries if not only or entry.task in only]


def _settings(yaml: str | Path | None, entries: Sequence[Entry]) -> dict[str, Mapping[str, Any]]:
    """Task -> its settings in the file."""
    if yaml is None:
        return {}
    content = read_yaml(Path(yaml))
    known = [entry.task for entry in entries]
    names = [str(task) for task in content]
    for task in names:
        if task not in known or not isinstance(content[task], DictConfig):
            raise ConfigError(f"{yaml} must hold settings by task ({', '.join(known)}), but has '{task}'.")
    return {task: content[task] for task in names}


def _corpora(root: Path, entries: Sequence[Entry]) -> dict[str, Path]:
    """Task -> its corpus."""
    if (root / "corpus.json").is_file():
        return {entry.task: root for entry in entries}
    missing: dict[str, None] = {}  # in order, each once
    for entry in entries:
        try:
            open_corpus(root / entry.corpus)
        except ManifestError as error:
            logger.debug("%s", error)
            missing[entry.corpus] = None
    if missing:
        raise ManifestError(
            f"{root} lacks {len(missing)} corpora that are needed ({', '.join(missing)}): make each with `speechssl "
            f"prepare NAME {root}/NAME --from SOURCE`, or choose tasks with `--only`."
        )
    return {entry.task: root / entry.corpus for entry in entries}
