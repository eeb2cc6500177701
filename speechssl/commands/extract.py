"""`speechssl extract`: features of audio files, in files of several formats, with an index; or their discrete units."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def command(
    upstream: Annotated[str, typer.Argument(help="Preset, folder, or repository of an upstream.")],
    inputs: Annotated[
        list[str], typer.Argument(help="Audio files, folders, globs, lists, wav.scp, corpora, manifests.")
    ],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the features and index.jsonl.")],
    layers: Annotated[str | None, typer.Option(help="Such as 6,9 or -1; by default all.")] = None,
    format: Annotated[
        Literal["safetensors", "npy", "kaldi", "webdataset"],
        typer.Option(help="Files: a tensor per layer, or one array; ark and scp; tar shards."),
    ] = "safetensors",
    units: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="Write discrete units: by the folder of a `speechssl cluster`, 'own' or 'dmel'."
        ),
    ] = None,
    deduplicate: Annotated[
        bool, typer.Option("--deduplicate", help="Of units: one for equal neighbours, with its frames.")
    ] = False,
    chunk: Annotated[
        float | None, typer.Option(help="Seconds; longer files are computed in windows, in constant memory.")
    ] = None,
    context: Annotated[float, typer.Option(help="Seconds on both sides of a chunk that are computed with it.")] = 5.0,
    shard_size: Annotated[int, typer.Option(min=1, help="MB of features per ark or tar.")] = 256,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out bad files and list them in bad.tsv.")] = False,
    random_weights: Annotated[int | None, typer.Option(metavar="SEED", help="Random weights of this seed.")] = None,
    precision: Annotated[
        Literal["float32", "bf16"], typer.Option(help="What is computed in; features are float32.")
    ] = "float32",
    batch_seconds: Annotated[float, typer.Option(help="Seconds of audio per batch, padding included.")] = 60.0,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read and resample.")] = 2,
    devices: Annotated[
        str, typer.Option("--devices", "--device", help="cpu, cuda (every GPU that is visible), or cuda:0,cuda:1 ...")
    ] = "cpu",
) -> None:
    """Extract features; run again, it goes on where it was.

    Example: speechssl extract hubert_base recordings/ -o features --layers 6,9
    """
    import torch
    from rich.console import Console
    from rich.table import Table

    from speechssl.devices import resolve_devices
    from speechssl.errors import ConfigError
    from speechssl.feature_extraction import write_features
    from speechssl.feature_files import FeatureFolder
    from speechssl.loading import load_upstream

    places = resolve_devices(devices)
    if units is not None:
        from speechssl.unit_extraction import write_units
        from speechssl.unit_sources import open_units

        source = open_units(
            upstream, units, layer=_one_layer(layers, format), device=places[0], random_weights=random_weights
        )
        made = write_units(
            source, inputs, output, dedup=deduplicate, batch_seconds=batch_seconds, workers=workers,
            precision=precision, skip_bad=skip_bad, chunk=chunk, context=context, devices=places,
        )  # fmt: skip
        table = Table("utterances", "of them new", "frames", "units", "left out as bad", title=f"{output}/units.jsonl")
        table.add_row(*map(str, (made.computed + made.kept, made.computed, made.frames, made.units, len(made.bad))))
        Console().print(table)
        return
    if deduplicate:
        raise ConfigError("`--deduplicate` is of units: give `--units` too.")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    loaded = load_upstream(upstream, device=places[0], dtype=dtype, random_weights=random_weights)
    folder = FeatureFolder(
        output,
        upstream=loaded,
        layers=parse_layers(layers),
        format=format,
        precision=precision,
        chunk=chunk,
        context=context,
        shard_bytes=shard_size * 1_000_000,
    )
    summary = write_features(
        loaded, inputs, folder, batch_seconds=batch_seconds, workers=workers, skip_bad=skip_bad, devices=places
    )
    table = Table("", "utterances", "seconds of audio", "frames", title=str(output))
    rows = {"computed now": summary.computed, "there already": summary.kept}
    for name, count in rows.items():
        table.add_row(name, str(count.utterances), f"{count.seconds:.1f}", str(count.frames))
    table.add_row("left out as bad", str(len(summary.bad)), "", "")
    console = Console()
    console.print(table)
    rate = f"{summary.audio_rate:.1f} seconds of audio per second; " if summary.computed.utterances else ""
    console.print(f"{rate}index: {folder.index}")
    if summary.bad:
        console.print(f"Left out: see {folder.bad}")


def _one_layer(layers: str | None, format: str) -> int | None:
    from speechssl.errors import ConfigError

    chosen = parse_layers(layers)
    if format != "safetensors" or (chosen is not None and len(chosen) > 1):
        raise ConfigError("Units are of one layer, in units.jsonl: leave `--format` out, and other layers.")
    return None if chosen is None else chosen[0]


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """Reads the option --layers, such as '6,9'; None = all."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"must be numbers such as 6,9, but is '{text}'", param_hint="--layers") from None
