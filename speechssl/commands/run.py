"""`speechssl run`: train and evaluate a task on top of upstreams."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from speechssl.errors import ConfigError

if TYPE_CHECKING:
    from speechssl.console import FittingTable
    from speechssl.result import MetricValue, RunResult
    from speechssl.suite import SuiteResult


def command(  # noqa: PLR0917  typer calls it by keyword
    task: Annotated[
        str, typer.Argument(help="Task or one of its presets: asr, asr_demo ...; or a suite of tasks: superb ...")
    ],
    upstream: Annotated[
        list[str],
        typer.Option(
            "--upstream",
            "-u",
            help="Name (see `speechssl list`) or folder; label=NAME names it, NAME:random[:SEED] has random weights, "
            "NAME:raw hears waveforms as they are though its checkpoint normalises them. "
            "Several: -u one -u other.",
        ),
    ],
    corpus: Annotated[
        Path, typer.Option(help="Folder that `speechssl prepare` wrote; for a suite, that of all its corpora.")
    ] = Path("data/demo"),
    seed: Annotated[
        list[int] | None, typer.Option(help="One run for each: --seed 0 --seed 1. 0 where none is given.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Settings to begin with, such as asr_demo, which may also stand for TASK.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with the settings to change.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="A setting, such as train.steps=500; `speechssl list TASK` shows all."),
    ] = None,
    heads: Annotated[
        str | None, typer.Option(help="Heads of the task to run side by side, such as linear,mlp; or all.")
    ] = None,
    folds: Annotated[
        str | None, typer.Option(help="Folds of the corpus, such as 1,2; or all: their mean is shown.")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(help="A setting and values that dev chooses from, such as lr=1e-2,1e-3,1e-4.")
    ] = None,
    subset: Annotated[
        float | None, typer.Option(help="Share of the utterances and of the steps, such as 0.1, for a quick look.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="Of a suite: tasks to run, such as asr,diarization.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="What tables call each upstream, in order.")] = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Results go to OUT/TASK/LABEL/seedK, in place of any with other settings, such as another preset's.",
        ),
    ] = Path("exp"),
    random_weights: Annotated[int | None, typer.Option(help="Seed; gives every upstream random weights.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs (seeds, heads, folds, upstreams) trained at once.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each training.")] = 1,
    cache: Annotated[Path | None, typer.Option(help="Folder of the feature cache; else ~/.cache/speechssl.")] = None,
    cache_gb: Annotated[
        float,
        typer.Option(help="Its budget for all upstreams together, 10^9 bytes; the rest is computed at each pass."),
    ] = 20.0,
    devices: Annotated[
        str, typer.Option("--devices", "--device", help="cpu, cuda (every GPU that is visible), or cuda:0,cuda:1 ...")
    ] = "cpu",
    precision: Annotated[
        Literal["float32", "bf16"], typer.Option(help="In which upstreams compute what stays as it is.")
    ] = "float32",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out audio that is missing or can't be read, and count it.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Run again what is finished.")] = False,
) -> None:
    """Train and evaluate a task on top of upstreams.

    Upstreams are frozen, unless a setting such as adapt.method=lora trains them too. What is finished is read, not run
    again; what was interrupted goes on. `speechssl list TASK` shows presets, heads and settings of a task.

    Example: speechssl run asr_demo -u fbank -u pretrained=exp/pretrain/upstream --seed 0 --seed 1 --jobs 2

    Example: speechssl run keyword_spotting --corpus data/speech_commands -u hubert_base --sweep lr=1e-2,1e-3,1e-4

    Example: speechssl run superb --corpus data -u hubert_base -u wavlm_base --subset 0.1
    """
    from rich.console import Console

    from speechssl.jobs import RunOptions
    from speechssl.runner import run
    from speechssl.suite import run_suite, suite_names
    from speechssl.variants import rank_correlations

    if label and len(label) != len(upstream):
        raise ConfigError(
            f"`--label` must be given once per upstream, {len(upstream)} times, but is given {len(label)}."
        )
    specs = [f"{name}={text}" for name, text in zip(label, upstream, strict=True)] if label else upstream
    options = RunOptions(
        cache_folder=None if cache is None else str(cache),
        cache_gb=cache_gb,
        jobs=jobs,
        threads=threads,
        devices=devices,
        precision=precision,
        skip_bad=skip_bad,
        force=force,
    )
    if task in suite_names():
        if preset or heads or folds:
            raise ConfigError(f"`--preset`, `--heads` and `--folds` are of one task, but '{task}' has several.")
        outcome = run_suite(
            task, upstream=specs, corpora=corpus, only=_names(only), seeds=seed or [0], yaml=config,
            overrides=override or [], sweep=sweep, subset=subset, out=out, random_weights=random_weights,
            options=options,
        )  # fmt: skip
        Console().print(suite_table(outcome))
        return
    if only:
        raise ConfigError(f"`--only` chooses tasks of a suite, but '{task}' is a task.")
    results = run(
        task, upstream=specs, corpus=corpus, seeds=seed or [0], preset=preset, yaml=config, overrides=override or [],
        heads=_names(heads), folds=_numbers(folds), sweep=sweep, subset=subset, out=out,
        random_weights=random_weights, options=options,
    )  # fmt: skip
    Console().print(results_table(results))
    for (first, second), correlation in rank_correlations(results).items():
        Console().print(f"The heads {first} and {second} rank the upstreams alike to {correlation:.2f} (Spearman).")


def _names(text: str | None) -> list[str]:
    return [] if text is None else [name.strip() for name in text.split(",")]


def suite_table(outcome: "SuiteResult") -> "FittingTable":
    """One row per upstream: each task's primary metric on test, a mean over seeds and folds, and the score."""
    from speechssl.console import FittingTable

    primary = {task: results[0] for task, results in outcome.results.items()}
    heads = [f"{task}\n{one.metric} {'↑' if one.higher_is_better else '↓'}" for task, one in primary.items()]
    rows = []
    for label, found in outcome.metrics.items():
        cells = [f"{found[task][one.metric]:.4f}" if task in found else "" for task, one in primary.items()]
        score = [f"{outcome.scores[label]:.0f}" if label in outcome.scores else "–"] if outcome.score else []
        rows.append([label, *cells, *score])
    header = ["upstream", *heads, *([outcome.score] if outcome.score else [])]
    return FittingTable(f"{outcome.suite}: test", header, rows)


def _numbers(folds: str | None) -> "list[int | str]":
    if folds is None:
        return []
    wrong = [fold for fold in folds.split(",") if fold != "all" and not fold.strip().isdigit()]
    if wrong:
        raise ConfigError(f"`--folds` must be numbers such as 1,2, or all, but has '{wrong[0]}'.")
    return [fold if fold == "all" else int(fold) for fold in folds.split(",")]


def results_table(results: "Sequence[RunResult]") -> "FittingTable":
    """One row per head, upstream, fold and seed, then one with the mean over folds and seeds; metrics on test.

    The primary metric comes first and has its 95 % interval; `result.json` holds those of the others.
    """
    from speechssl.console import FittingTable

    primary = results[0].metric
    names = sorted(results[0].test.metrics, key=lambda name: name != primary)  # stable: the others keep their order
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        label = result.upstream.label + (f", {result.head} head" if result.head else "")
        groups.setdefault(label, []).append(result)
    rows: list[list[str]] = []
    means = set()
    for label, group in groups.items():
        for result in group:
            cells = [_cell(result.test.metrics[name], interval=name == result.metric) for name in names]
            seconds = f"{sum(result.seconds.values()):.0f}"
            seed = f"{result.seed}, fold {result.fold}" if result.fold else str(result.seed)
            rows.append([label, f"seed {seed}", *cells, str(result.best_step), seconds])
        if len(group) > 1:
            spread = [[r.test.metrics[name].value for r in group] for name in names]
            cells = [f"{mean(v):.4f} ± {stdev(v):.4f}" for v in spread]
            means.add(len(rows))
            rows.append([label, "mean ± sd", *cells, "", ""])
    header = ["upstream", "", *names, "best step", "seconds"]
    return FittingTable(f"{results[0].task}: test", header, rows, keys=2, bold=frozenset(means))


def _cell(value: "MetricValue", *, interval: bool) -> str:
    text = f"{value.value:.4f}"
    if not interval or value.low is None or value.high is None:
        return text
    return f"{text} [{value.low:.3f}, {value.high:.3f}]"
