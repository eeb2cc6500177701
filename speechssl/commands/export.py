"""`speechssl export`: an upstream in another format."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def command(
    checkpoint: Annotated[str, typer.Argument(help="Upstream folder, checkpoint, preset or repository.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write, or file.onnx, file.pt2.")],
    to: Annotated[
        Literal["speechssl", "safetensors", "transformers", "onnx", "torch-export"],
        typer.Option(help="Format to write; safetensors is another name of speechssl's own."),
    ] = "speechssl",
    layers: Annotated[
        str | None, typer.Option(help="Hidden states that onnx and torch-export put out, such as 6,9 or -1; all.")
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Store speechssl's own format as float16; it loads as float32.")
    ] = False,
) -> None:
    """Write an upstream for speechssl, transformers, onnxruntime or torch.export, the latter two checked at the end.

    Example: speechssl export exp/pretrain/upstream --to transformers -o exp/hubert_hf
    """
    from rich.console import Console
    from rich.table import Table

    from speechssl.commands.extract import parse_layers
    from speechssl.export import SUFFIXES, export_upstream, program_path

    upstream = export_upstream(checkpoint, out, to=to, layers=parse_layers(layers), half=half)
    written = program_path(out, to) if to in SUFFIXES else out
    table = Table("upstream", "format", "parameters", "written to")
    table.add_row(checkpoint, to, f"{sum(p.numel() for p in upstream.parameters()):,}", str(written))
    Console().print(table)
