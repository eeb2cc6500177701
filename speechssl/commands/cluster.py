"""`speechssl cluster`: k-means labels for pre-training."""

import os
from pathlib import Path
from typing import Annotated

import typer


def command(
    *,
    upstream: Annotated[str, typer.Option(help="mfcc, or an upstream's name or folder.")],
    corpus: Annotated[
        list[Path],
        typer.Option(
            help="Prepared corpus, Lhotse manifest of cuts, or folder of Lhotse Shar; several are labelled together."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Receives centroids and labels.")],
    layer: Annotated[int, typer.Option(help="Which hidden state.")] = 0,
    clusters: Annotated[int, typer.Option(help="How many labels.")] = 100,
    split: Annotated[
        list[str] | None, typer.Option(help="Split to label (default: train); the first is fitted on.")
    ] = None,
    fraction: Annotated[float, typer.Option(help="Share of the audio that is fitted on.")] = 0.1,
    sample_hours: Annotated[float | None, typer.Option(help="Hours that are fitted on, instead of a fraction.")] = None,
    fitted: Annotated[
        Path | None, typer.Option(help="Folder of an earlier clustering, whose centroids are used instead of a fit.")
    ] = None,
    max_frames: Annotated[int, typer.Option(help="Most frames that are fitted on in memory.")] = 500_000,
    minibatch_passes: Annotated[
        int, typer.Option(help="Mini-batch passes over all frames of that share, made anew each time.")
    ] = 0,
    corpus_passes: Annotated[int, typer.Option(help="Lloyd's passes over them, after those.")] = 0,
    fairseq: Annotated[
        bool, typer.Option("--fairseq", help="Also write SPLIT.km, SPLIT.tsv and dict.km.txt, as fairseq reads them.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Decides the sample and the first centroids.")] = 0,
    precision: Annotated[str, typer.Option(help="float32 or bf16.")] = "float32",
    batch_seconds: Annotated[float, typer.Option(help="Seconds of audio per batch.")] = 120.0,
    device: Annotated[str, typer.Option(help="Such as cpu or cuda.")] = "cpu",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out files that can't be read, and count them.")
    ] = False,
) -> None:
    """Fit k-means on a layer's features and label a corpus with it; an interrupted run goes on by itself.

    Features are made where they are needed and never written. Several processes or GPUs share the work:
    torchrun --nproc-per-node=8 -m speechssl cluster --device cuda ...

    Example: speechssl cluster --upstream mfcc --corpus data/demo --clusters 100 -o exp/mfcc
    """
    from typing import cast

    from rich.console import Console
    from rich.table import Table

    from speechssl.data.sources import TrainingCorpus
    from speechssl.errors import ConfigError
    from speechssl.extraction import Precision
    from speechssl.loading import load_upstream
    from speechssl.targets.cluster import ClusterConfig, cluster
    from speechssl.targets.fairseq_labels import write_fairseq_labels
    from speechssl.targets.lloyd import KMeansConfig

    if precision not in ("float32", "bf16"):
        raise ConfigError(f"`--precision` must be float32 or bf16, but is '{precision}'.")
    splits = split or ["train"]
    opened = TrainingCorpus(corpus, splits[0])
    if sample_hours is not None:
        total = sum(u.duration or 0.0 for u in opened.utterances(splits[0])) / 3600
        fraction = min(sample_hours / max(total, 1e-9), 1.0)
    config = ClusterConfig(
        layer=layer,
        kmeans=KMeansConfig(clusters=clusters),
        fraction=fraction,
        max_frames=max_frames,
        minibatch_passes=minibatch_passes,
        corpus_passes=corpus_passes,
        seed=seed,
        batch_seconds=batch_seconds,
        precision=cast(Precision, precision),
    )
    local = os.environ.get("LOCAL_RANK")
    place = f"cuda:{local}" if device == "cuda" and local is not None else device
    outcome = cluster(
        load_upstream(upstream, device=place), opened, output, config, splits=splits, fitted=fitted, skip_bad=skip_bad
    )
    if local not in (None, "0"):
        return
    if fairseq:
        for name, labels in outcome.labels.items():
            write_fairseq_labels(labels, opened.utterances(name), output, split=name)
    table = Table("split", "utterances", "codes", "label rate (Hz)", "clusters", "code perplexity", "inertia")
    for name, labels in outcome.labels.items():
        table.add_row(
            name, str(len(labels.ids)), str(len(labels.codes)), f"{labels.label_rate:g}", str(labels.num_labels),
            f"{outcome.code_perplexity[name]:.1f}", f"{outcome.inertia:.4g} ({outcome.frames} frames)",
        )  # fmt: skip
    Console().print(table)
