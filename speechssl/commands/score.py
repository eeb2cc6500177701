"""`speechssl score`: measure finished audio or scores that anybody made."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from speechssl.scoring import ScoreModule, Scores


def command(  # noqa: PLR0917  typer calls it by keyword
    task: Annotated[str, typer.Argument(help="Task whose measures are taken, such as voice_conversion.")],
    files: Annotated[list[Path], typer.Argument(help="What it reads: of voice_conversion, a list of conversions.")],
    out: Annotated[
        Path | None, typer.Option("--out", "--output", "-o", help="Folder for scores.json and items.tsv.")
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option("--measure", "-m", help="Only these, such as similarity,wer; else all that the files allow."),
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="A setting of the task, such as vocoder=griffin_lim.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...: where judges compute.")] = "cpu",
) -> None:
    """Measure finished conversions, whoever made them; no run is needed.

    The list of voice_conversion is tab-separated with a first line that names its columns, or has a JSON object on
    each line: converted, source, target (files; several with ';' or as a JSON list), perhaps text and parallel (the
    target's own recording of these words). Paths start from the list.

    `robustness` in place of a task tests finished runs under disturbances; `--measure` then names some of them, and
    `--set corpus=FOLDER` the corpus that the runs were made on.

    Example: speechssl score voice_conversion conversions.tsv -o scores
    """
    from rich.console import Console

    from speechssl.commands import robustness
    from speechssl.scoring import FILES, run_score

    if task == robustness.NAME:
        robustness.score_robustness(files, conditions=measure or (), settings=setting or (), device=device)
        return

    module, scores = run_score(task, files, measures=measure or (), device=device, settings=setting or (), out=out)
    console = Console()
    console.print(score_table(module, scores))
    for note in scores.notes:
        typer.echo(note, err=True)
    if out is not None:
        typer.echo(f"Wrote {' and '.join(str(out / name) for name in FILES)}.")


def score_table(module: "ScoreModule", scores: "Scores") -> "Table":
    """A line for each measure, a column for each condition."""
    from rich.table import Table

    from speechssl.scoring import show_value

    conditions = list(dict.fromkeys(c for found in scores.metrics.values() for c in found))
    table = Table("measure", *conditions, "n", "better", title=f"{scores.what}, with 95 % intervals")
    for name, found in scores.metrics.items():
        measure = module.MEASURES[name]
        cells = [show_value(found[c], measure.unit) if c in found else "" for c in conditions]
        counts = ", ".join(dict.fromkeys(str(value.n) for value in found.values()))
        unit = next(iter(found.values())).unit
        table.add_row(name, *cells, f"{counts} {unit}", measure.better)
    return table
