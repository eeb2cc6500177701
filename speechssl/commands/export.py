"""`speechssl export`: an upstream in another format."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def command(
    checkpoint: Annotated[str, typer.Argument(help="Upstream folder, preset or repository.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    to: Annotated[Literal["speechssl", "transformers"], typer.Option(help="Format to write.")] = "speechssl",
) -> None:
    """Write an upstream as a folder that speechssl or transformers reads.

    Example: speechssl export exp/pretrain/upstream --to transformers -o exp/hubert_hf
    """
    from rich.console import Console
    from rich.table import Table

    from speechssl.export import export_upstream

    upstream = export_upstream(checkpoint, out, to=to)
    table = Table("upstream", "format", "parameters", "folder")
    table.add_row(checkpoint, to, f"{sum(p.numel() for p in upstream.parameters()):,}", str(out))
    Console().print(table)
