"""`speechssl report`: one HTML page about finished runs."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    runs: Annotated[list[Path], typer.Argument(help="Folders searched for finished runs and pre-training logs.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for index.html.")] = Path("report"),
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "speechssl report",
    examples: Annotated[int, typer.Option(min=0, help="Listening examples per task.")] = 6,
) -> None:
    """Write one HTML page about finished runs.

    Example: speechssl report exp -o report
    """
    from rich.console import Console

    from speechssl.report import console_table, write_report

    written = write_report(runs, output, title=title, examples=examples)
    console = Console()
    if written.results:
        console.print(console_table(written.results))
    if written.problems:
        console.print(f"{len(written.problems)} missing or doubtful pieces are named at the end of the page.")
    console.print(f"Wrote {written.path} ({written.path.stat().st_size / 1e6:.1f} MB).", markup=False)
