"""`speechssl analyse`: what the layers of models know, on one page."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def command(
    upstream: Annotated[
        list[str],
        typer.Argument(help="Upstreams, as of `speechssl run`: name, folder, label=NAME, NAME:random[:SEED]."),
    ],
    *,
    corpus: Annotated[Path, typer.Option(help="Folder that `speechssl prepare` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for index.html and analysis.json.")],
    split: Annotated[list[str] | None, typer.Option(help="Splits of the corpus to look at; test by default.")] = None,
    utterances: Annotated[int | None, typer.Option(min=2, help="Most utterances, drawn at random.")] = None,
    measures: Annotated[
        str | None, typer.Option(help="Of rank,similarity,information,probe,abx,units, by default all; or fungi.")
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(help="[phone=|word=]PATH of labels: .TextGrid or a folder of them, .ctm, .item, .jsonl."),
    ] = None,
    label_rate: Annotated[
        float | None, typer.Option(help="Units of time per second of the labels, where they are not in seconds.")
    ] = None,
    align: Annotated[
        bool, typer.Option("--align/--no-align", help="Align English text where nobody has labelled phones.")
    ] = True,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Of pre-training runs all checkpoints, and not only their end.")
    ] = False,
    runs: Annotated[
        list[Path] | None, typer.Option(help="Finished runs of tasks: the layer weights that their heads learned.")
    ] = None,
    frames: Annotated[int, typer.Option(min=2, help="Frames that most measures look at.")] = 8_000,
    clusters: Annotated[int, typer.Option(min=2, help="Units of the k-means of each layer.")] = 100,
    examples: Annotated[int, typer.Option(min=0, help="Utterances that are drawn.")] = 2,
    seed: Annotated[int, typer.Option(help="Decides what is drawn at random.")] = 0,
    cache: Annotated[Path | None, typer.Option(help="Folder of the feature cache; else ~/.cache/speechssl.")] = None,
    cache_gb: Annotated[float, typer.Option(help="Its budget, 10^9 bytes.")] = 20.0,
    held_gb: Annotated[float, typer.Option(help="Most memory for what is kept of a model, 10^9 bytes.")] = 2.0,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read, processes that align.")] = 1,
    device: Annotated[str, typer.Option(help="Such as cpu or cuda.")] = "cpu",
    precision: Annotated[Literal["float32", "bf16"], typer.Option(help="In which upstreams compute.")] = "float32",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out audio that can't be read.")] = False,
) -> None:
    """Look inside models: ranks, similarities, probes, ABX and units of every layer, on one page.

    Features come from the cache; what labels do not allow is left out and named. Models are compared with the first.

    Example: speechssl analyse speechssl_tiny random=hubert_tiny:random --corpus data/demo -o analysis
    """
    from rich.console import Console

    from speechssl.analysis.models import resolve_models
    from speechssl.analysis.page import write_page
    from speechssl.analysis.run import Options, analyse
    from speechssl.analysis.settings import GROUPS, AnalysisSettings
    from speechssl.analysis.summary import console_table
    from speechssl.cache import FeatureCache
    from speechssl.data.corpus import open_corpus

    settings = AnalysisSettings(
        measures=GROUPS if measures is None else tuple(m.strip() for m in measures.split(",")),
        utterances=utterances, frames=frames, clusters=clusters, examples=examples, held_gb=held_gb, seed=seed,
    )  # fmt: skip
    options = Options(
        splits=tuple(split or ["test"]), labels=tuple(labels or ()), label_rate=label_rate, align=align,
        workers=workers, cache=FeatureCache(cache, cache_gb), precision=precision, skip_bad=skip_bad,
    )  # fmt: skip
    models = resolve_models(upstream, device=device, checkpoints=checkpoints)
    analysed = analyse(models, open_corpus(corpus), output, settings, options)
    path = write_page(analysed, models, output, runs=runs or ())
    console = Console()
    console.print(console_table(analysed.analysis))
    console.print(f"Wrote {path} ({path.stat().st_size / 1e6:.1f} MB).", markup=False)
