"""`speechssl vocoder`: training of a vocoder."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    preset: Annotated[str, typer.Argument(help="hifigan_v1, knnvc, istft or istft_demo.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings such as train.steps=1000.")] = None,
    *,
    corpus: Annotated[
        list[Path],
        typer.Option(help="Prepared corpus, Lhotse manifest of cuts, or folder of Lhotse Shar; may be repeated."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Receives the vocoder, checkpoints and metrics.")],
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    upstream: Annotated[
        str | None, typer.Option(help="Upstream whose features are read in place of log-mel frames.")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Which hidden state of the upstream.")] = None,
    prematch: Annotated[
        bool,
        typer.Option("--prematch", help="Train on means of the nearest frames of the speaker's other utterances."),
    ] = False,
    match_layer: Annotated[
        int | None, typer.Option(help="Hidden state that is compared to find the nearest frames; else --layer.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with the settings to change.")] = None,
) -> None:
    """Train a vocoder on a corpus; an interrupted run goes on by itself.

    Settings: train.* (optimisation and losses), model.* (shape).

    Example: speechssl vocoder istft_demo --corpus data/demo -o exp/vocoder train.steps=1000
    """
    from rich.console import Console
    from rich.table import Table

    from speechssl.vocoder.run import train_vocoder

    outcome = train_vocoder(
        preset,
        corpus=corpus,
        output=output,
        split=split,
        upstream=upstream,
        layer=layer,
        prematch=prematch,
        match_layer=match_layer,
        yaml=config,
        overrides=overrides or (),
    )
    if not outcome.finished:
        typer.echo(f"Stopped at step {outcome.step}; the same command goes on from there.", err=True)
        raise typer.Exit(143)
    table = Table("metric", f"at step {outcome.step}")
    for name, value in outcome.values.items():
        table.add_row(name.replace("_", " "), f"{value:.4g}")
    Console().print(table)
