"""`speechssl score`: measure finished audio or scores that anybody made."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from speechssl.console import FittingTable
    from speechssl.scoring import ScoreModule, Scores


def command(  # noqa: PLR0917  typer calls it by keyword
    task: Annotated[str, typer.Argument(help="Task whose measures are taken, such as voice_conversion.")],
    files: Annotated[
        list[Path],
        typer.Argument(
            help="What it reads: of voice_conversion, a list of conversions; of deepfake_detection, the scores of one "
            "system or of several, and at last a protocol."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "--output", "-o", help="Folder for scores.json and what else is written.")
    ] = None,
    dev: Annotated[
        list[Path] | None,
        typer.Option(
            help="Scores and protocol of dev, each with its own --dev, in the order of the files: there "
            "deepfake_detection learns calibration and fusion."
        ),
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
    """Measure finished conversions or scores, whoever made them; no run is needed.

    The list of voice_conversion is tab-separated with a first line that names its columns, or has a JSON object on
    each line: converted, source, target (files; several with ';' or as a JSON list), perhaps text and parallel (the
    target's own recording of these words). Paths start from the list.

    Scores and protocols of deepfake_detection are those of the ASVspoof challenges, or tables whose first line names
    their columns. Several score files are fused. Folders of finished runs stand for their scores.

    `robustness` in place of a task tests finished runs under disturbances; `--measure` then names some of them, and
    `--set corpus=FOLDER` the corpus that the runs were made on.

    Example: speechssl score voice_conversion conversions.tsv -o scores

    Example: speechssl score deepfake_detection eval.tsv eval_keys.tsv --dev dev.tsv --dev dev_keys.tsv -o scores
    """
    from rich.console import Console

    from speechssl.commands import robustness
    from speechssl.scoring import run_score, written_files

    if task == robustness.NAME:
        robustness.score_robustness(files, conditions=measure or (), settings=setting or (), device=device)
        return

    module, scores = run_score(
        task, files, measures=measure or (), device=device, settings=setting or (), dev=dev or (), out=out
    )
    console = Console()
    console.print(score_table(module, scores))
    for name in scores.breakdown:
        console.print(group_table(module, scores, name))
    for note in scores.notes:
        typer.echo(note, err=True)
    if out is not None:
        typer.echo(f"Wrote {' and '.join(str(out / name) for name in written_files(scores))}.")


def score_table(module: "ScoreModule", scores: "Scores") -> "FittingTable":
    """A line for each measure, a column for each condition."""
    from speechssl.console import FittingTable
    from speechssl.scoring import show_value

    conditions = list(dict.fromkeys(c for found in scores.metrics.values() for c in found))
    rows = []
    for name, found in scores.metrics.items():
        measure = module.MEASURES[name]
        cells = [show_value(found[c], measure.unit, measure.digits) if c in found else "" for c in conditions]
        counts = ", ".join(dict.fromkeys(str(value.n) for value in found.values()))
        unit = next(iter(found.values())).unit
        rows.append([name, *cells, f"{counts} {unit}", measure.better])
    return FittingTable(f"{scores.what}, with 95 % intervals", ["measure", *conditions, "n", "better"], rows)


def group_table(module: "ScoreModule", scores: "Scores", name: str) -> "FittingTable":
    """A line for each value of a property, such as an attack; the columns are measures of the last condition."""
    from speechssl.console import FittingTable
    from speechssl.scoring import show_value

    groups = scores.breakdown[name]
    columns = list(dict.fromkeys((m, list(found)[-1]) for group in groups.values() for m, found in group.items()))
    rows = []
    for value, group in groups.items():
        shown = [(group.get(m, {}).get(c), module.MEASURES[m]) for m, c in columns]
        rows.append(
            [value, *("" if v is None else show_value(v, measure.unit, measure.digits) for v, measure in shown)]
        )
    title = f"by {name}" + (f": {columns[0][1]}" if columns else "")
    return FittingTable(title, [name, *(m for m, _ in columns)], rows)
