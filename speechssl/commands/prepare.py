"""`speechssl prepare`: fetch and prepare a corpus."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from speechssl.errors import ConfigError, UnknownNameError

CORPORA = ("demo",)


def command(  # noqa: PLR0917  typer calls it by keyword
    corpus: Annotated[str, typer.Argument(help="Which corpus: demo.")],
    folder: Annotated[Path, typer.Argument(help="Where it is written, such as data/demo.")],
    config: Annotated[Path | None, typer.Option(help="YAML file: which sources, hours of each.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Every source, without limit of hours.")] = False,
    source: Annotated[
        Literal["debian", "synthetic"], typer.Option(help="Real speech from packages, or a synthesiser.")
    ] = "debian",
    keep_packages: Annotated[bool, typer.Option("--keep-packages", help="Keep what was downloaded.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out files that can't be decoded.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that unpack and decode.")] = 2,
) -> None:
    """Fetch and prepare a corpus.

    Example: speechssl prepare demo data/demo
    """
    from speechssl.data.demo.prepare import prepare_demo

    if corpus not in CORPORA:
        raise UnknownNameError("corpus", corpus, CORPORA)
    if full and config is not None:
        raise ConfigError("`--full` and `--config` exclude each other: drop one of them.")
    info = prepare_demo(
        folder, config=config, full=full, source=source, keep_packages=keep_packages, skip_bad=skip_bad, workers=workers
    )
    _show(folder, info)


def _show(folder: Path, info: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("source", "hours", "utterances", "left out", "licence", title=f"{folder}")
    for row in info["sources"]:
        skipped = ", ".join(f"{n} {why}" for why, n in row["skipped"].items())
        table.add_row(row["name"], f"{row['hours']:.2f}", str(row["utterances"]), skipped, row["licence"])
    console.print(table)
    table = Table("split", "hours", "utterances", "transcribed", "speakers", "languages")
    for split, row in info["splits"].items():
        counts = (row[key] for key in ("utterances", "transcribed", "speakers", "languages"))
        table.add_row(split, f"{row['hours']:.2f}", *(str(count) for count in counts))
    console.print(table)
