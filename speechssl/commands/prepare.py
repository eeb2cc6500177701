"""`speechssl prepare`: make a corpus ready, fetched or from where the user has it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from speechssl.data.corpora.base import list_corpora
from speechssl.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechssl.data.corpora.audit import Row

DEMO = "demo"
PUBLISHED = tuple(list_corpora())


def command(  # noqa: PLR0917  typer calls it by keyword
    corpus: Annotated[str, typer.Argument(help=f"Which corpus: {DEMO}, {', '.join(PUBLISHED)}.")],
    folder: Annotated[Path, typer.Argument(help="Where it is written, such as data/demo.")],
    origin: Annotated[
        Path | None, typer.Option("--from", help="Folder where you have a published corpus; its audio stays there.")
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="Only count what is missing below --from, and write nothing.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file: which sources of the demo, or the corpus's settings (docs/corpora.md)."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Of the demo, every source, without limit of hours.")] = False,
    source: Annotated[
        Literal["debian", "synthetic"] | None,
        typer.Option(help="Of the demo, real speech from packages (debian), or a synthesiser."),
    ] = None,
    keep_packages: Annotated[bool, typer.Option("--keep-packages", help="Keep what was downloaded.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out files that can't be decoded.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that decode (demo: 2), or threads that read headers (8).")
    ] = None,
) -> None:
    """Fetch the demo corpus and prepare it, or prepare a published corpus that you have.

    Example: speechssl prepare demo data/demo

    Example: speechssl prepare librispeech data/librispeech --from /data/LibriSpeech --audit
    """
    if corpus in PUBLISHED:
        used = {"--full": full, "--source": source is not None, "--keep-packages": keep_packages}
        _refuse(used, f"belongs to the demo corpus, not to '{corpus}'")
        if origin is None:
            raise ConfigError(f"Give with --from the folder where you have '{corpus}'.")
        if audit:
            _refuse({"--skip-bad": skip_bad, "--workers": workers is not None}, "has no meaning with --audit")
            _audit(corpus, origin, config)
        else:
            _prepare_published(corpus, origin, folder, config=config, skip_bad=skip_bad, workers=workers or 8)
        return
    if corpus != DEMO:
        raise UnknownNameError("corpus", corpus, (DEMO, *PUBLISHED))
    _refuse({"--from": origin is not None, "--audit": audit}, "belongs to published corpora, not to the demo")
    if full and config is not None:
        raise ConfigError("`--full` and `--config` exclude each other: drop one of them.")
    from speechssl.data.demo.prepare import prepare_demo

    info = prepare_demo(
        folder,
        config=config,
        full=full,
        source=source or "debian",
        keep_packages=keep_packages,
        skip_bad=skip_bad,
        workers=workers or 2,
    )
    _show(folder, info)


def _refuse(used: dict[str, bool], why: str) -> None:
    for option, given in used.items():
        if given:
            raise ConfigError(f"`{option}` {why}: drop it.")


def _audit(corpus: str, origin: Path, config: Path | None) -> None:
    """Shows what is there; ends with status 1 if something is missing."""
    from rich.console import Console

    from speechssl.data.corpora.audit import audit

    rows = audit(corpus, origin, config=config)
    Console().print(audit_table(f"{corpus}: {origin}", rows))
    if any(row.fault for row in rows):
        raise typer.Exit(1)


def audit_table(title: str, rows: "Sequence[Row]") -> Any:
    """One line per count; what falls short is marked."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "expected", "found", "missing", title=escape(title))
    table.add_column("such as", overflow="fold")
    for row in rows:
        expected, short = ("", "") if row.expected is None else (str(row.expected), str(row.expected - row.found))
        table.add_row(
            row.what,
            expected,
            str(row.found),
            short if row.fault else "",
            escape("\n".join(row.examples)),
            style="red" * row.fault,
        )
    return table


def _prepare_published(
    corpus: str, origin: Path, folder: Path, *, config: Path | None, skip_bad: bool, workers: int
) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from speechssl.data.corpora.prepare import prepare_corpus

    info = prepare_corpus(corpus, origin, folder, config=config, skip_bad=skip_bad, workers=workers)
    _show(folder, info)
    if info["files"] or info["notes"]:
        table = Table("", "", title="also")
        for name, path in info["files"].items():
            table.add_row(name, escape(str(folder / path)))
        for what, count in info["notes"].items():
            table.add_row(what, str(count))
        Console().print(table)


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
