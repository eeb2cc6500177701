"""`speechssl score robustness`: finished runs under disturbances of their test set."""

import logging
from collections.abc import Sequence
from pathlib import Path

from speechssl.errors import ConfigError, ManifestError, UnknownNameError
from speechssl.inference import is_run, rebuild_task

logger = logging.getLogger(__name__)
NAME = "robustness"
"""What stands in place of a task."""
SETTINGS = {
    "corpus": "folder that the runs were made on; else data/demo",
    "limit": "test utterances that are heard; else all",
    "upstream": "where it is now, if it was moved",
    "cache": "folder of the feature cache",
    "precision": "float32, or bf16 where the runs were made so",
    "skip_bad": "true where the runs were made with `--skip-bad`",
}


def score_robustness(
    folders: Sequence[Path], *, conditions: Sequence[str], settings: Sequence[str], device: str
) -> None:
    """Measures each run below some folders, writes robustness.json beside its result, and prints a table.

    Args:
        conditions: names, or several in one string with commas; none = all.
        settings: 'name=value' of `SETTINGS`.
    """
    from rich.console import Console

    from speechssl.console import FittingTable
    from speechssl.data.corpus import open_corpus
    from speechssl.jobs import RunOptions, without_bad_files
    from speechssl.report.collect import collect
    from speechssl.report.robustness import robustness_tables
    from speechssl.report.summary import by_task, group_runs
    from speechssl.robustness import FILE, check_corpus, measure_robustness

    given = _settings(settings)
    runs = [run for run in collect(folders).runs if is_run(run.folder)]
    if not runs:
        raise ManifestError(f"{', '.join(map(str, folders))} holds no finished run: name what `speechssl run` wrote.")
    # All that can be wrong with a run is looked for before the first is measured.
    fitting = [run for run in runs if rebuild_task(run.result.task, run.result.config).labels_whole]
    if fitting and len(fitting) < len(runs):
        others = sorted({run.result.task for run in runs} - {run.result.task for run in fitting})
        message = "Left out: %d runs of tasks whose labels would not fit audio that was delayed or cut (%s)"
        logger.warning(message, len(runs) - len(fitting), ", ".join(others))
    runs = fitting or runs
    corpus, skip_bad = open_corpus(given.get("corpus", "data/demo")), given.get("skip_bad") == "true"
    corpus = (without_bad_files(corpus) if skip_bad else corpus).needing_audio()
    for run in runs:
        check_corpus(run.folder, run.result, corpus)
    names = [name.strip() for text in conditions for name in text.split(",") if name.strip()]
    for run in runs:
        measure_robustness(
            run.folder,
            corpus,
            conditions=names,
            limit=int(given["limit"]) if "limit" in given else None,
            upstream=given.get("upstream"),
            options=RunOptions(
                cache_folder=given.get("cache"),
                devices=device,
                precision="bf16" if given.get("precision") == "bf16" else "float32",
                skip_bad=skip_bad,
            ),
        )
    console = Console()
    for groups in by_task(group_runs([run.result for run in runs])).values():
        for table in robustness_tables(groups, runs, []):
            # Intervals and explanations are left to the report: a terminal has few lines.
            header = [f"{cell.text}\n{cell.note}".strip() for cell in table.header]
            console.print(FittingTable(table.title, header, [[cell.text for cell in row] for row in table.rows]))
    console.print(f"Wrote {FILE} into {len(runs)} run folders; `speechssl report` shows them.")


def _settings(texts: Sequence[str]) -> dict[str, str]:
    from speechssl.scoring import split_settings

    given = split_settings(texts)
    for name in given:
        if name not in SETTINGS:
            raise UnknownNameError("setting", name, SETTINGS)
    if given.get("precision", "float32") not in ("float32", "bf16"):
        raise ConfigError(f"`precision` must be float32 or bf16, but is '{given['precision']}'.")
    if given.get("skip_bad", "false") not in ("true", "false"):
        raise ConfigError(f"`skip_bad` must be true or false, but is '{given['skip_bad']}'.")
    limit = given.get("limit", "1")
    if not limit.isdigit() or int(limit) < 1:
        raise ConfigError(f"`limit` must be a number of utterances, but is '{limit}'.")
    return given
