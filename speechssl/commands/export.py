"""`speechssl export`: an upstream in another format."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from speechssl.errors import ConfigError


def command(
    checkpoint: Annotated[str, typer.Argument(help="Upstream: folder, checkpoint, preset, repository; or a vocoder.")],
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

    Example: speechssl export exp/vocoder --half -o vocoder
    """
    from rich.console import Console
    from rich.table import Table
    from torch import nn

    from speechssl.commands.extract import parse_layers
    from speechssl.export import OWN, SUFFIXES, export_upstream, program_path
    from speechssl.vocoder.folder import export_vocoder, is_vocoder

    kind, written = "upstream", program_path(out, to) if to in SUFFIXES else out
    module: nn.Module
    if is_vocoder(checkpoint):
        if to not in OWN or layers is not None:
            raise ConfigError(f"{checkpoint} holds a vocoder, which has one format: leave out `--to` and `--layers`.")
        kind, module = "vocoder", export_vocoder(checkpoint, out, half=half)
    else:
        module = export_upstream(checkpoint, out, to=to, layers=parse_layers(layers), half=half)
    table = Table(kind, "format", "parameters", "written to")
    table.add_row(checkpoint, to, f"{sum(p.numel() for p in module.parameters()):,}", str(written))
    Console().print(table)
