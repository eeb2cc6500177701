"""`speechssl pretrain`: self-supervised pre-training of an upstream."""

import os
from pathlib import Path
from typing import Annotated

import typer


def command(
    preset: Annotated[str, typer.Argument(help="Upstream to train, such as hubert_tiny.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings such as train.steps=1000.")] = None,
    *,
    corpus: Annotated[
        list[Path],
        typer.Option(help="Prepared corpus, Lhotse manifest of cuts, or folder of Lhotse Shar; may be repeated."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Receives the upstream, checkpoints and metrics.")],
    labels: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of `speechssl cluster`, where the objective predicts labels; may be repeated."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    init: Annotated[
        str | None, typer.Option(help="Upstream of the same shape to start from; random weights if not given.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with the settings to change.")] = None,
) -> None:
    """Pre-train an upstream on a corpus that `speechssl cluster` has labelled; an interrupted run goes on by itself.

    Settings: train.* (optimisation), objective.* (masking and loss), model.* (shape).

    Example: speechssl pretrain hubert_tiny --corpus data/demo --labels exp/mfcc -o exp/hubert_tiny train.steps=2000
    """
    from rich.console import Console
    from rich.table import Table

    from speechssl.train.run import pretrain

    outcome = pretrain(
        preset,
        corpus=corpus,
        labels=labels or (),
        output=output,
        split=split,
        init=init,
        yaml=config,
        overrides=overrides or (),
    )
    if not outcome.finished:
        typer.echo(f"Stopped at step {outcome.step}; the same command goes on from there.", err=True)
        # torchrun takes any other code for a failure, and starts all processes again.
        raise typer.Exit(0 if "TORCHELASTIC_RUN_ID" in os.environ else 143)
    if os.environ.get("RANK", "0") != "0":
        return
    table = Table("metric", f"at step {outcome.step}")
    for name, value in outcome.values.items():
        table.add_row(name.replace("_", " "), f"{value:.4g}")
    Console().print(table)
