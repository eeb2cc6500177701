"""How conversion depends on k, the amount of the target's speech, the layer and the upstream: curves of judges.

    python benchmarks/voice_conversion.py --vocoder exp/vocoder                    # all four
    python benchmarks/voice_conversion.py --only layer upstream --pairs 30

Each point is a run of `voice_conversion_demo` (`speechssl run`). Sources are of the test split, targets people of whom
the train split has nothing; the judges took no part in training. k and the amount of reference are swept with
`--vocoder`, which reads features, so that nothing is trained but it. Without one, and for layers and upstreams, a head
is trained for each point, and speaks through the universal HiFi-GAN. What is finished is kept. The first rows are the
anchors: the source itself, and real speech through the vocoder (voice: the target's; words: the source's). Writes
curves.svg and prints a table.
"""

import argparse
import logging
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import speechssl
from speechssl.jobs import RunOptions
from speechssl.result import RunResult
from speechssl.vocoder import load_vocoder

JUDGED = {
    "nearer_target": "nearer to the target",
    "similarity": "similarity",
    "acceptance": "accepted",
    "wer": "WER",
    "cer": "CER",
    "quality": "quality",
}
"""Metric -> column."""
ANCHORS = "{} by condition"


def sweeps(layers: Sequence[int], upstreams: Sequence[str]) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """Curve -> point -> settings; the upstream's points are upstreams."""
    return {
        "k": {str(k): (f"k={k}",) for k in (1, 2, 4, 8, 16, 32)},
        "reference": {str(s): (f"reference_seconds={s}",) for s in (5, 15, 30, 60, 90)},
        "layer": {str(layer): (f"features.layers=[{layer}]",) for layer in layers},
        "upstream": dict.fromkeys(upstreams, ()),
    }


def reads_features(args: argparse.Namespace, curve: str) -> bool:
    """Whether the points of a curve speak through `--vocoder`."""
    return args.vocoder is not None and curve in ("k", "reference")


def of_all(args: argparse.Namespace, curve: str) -> list[str]:
    """The settings of every point of a curve."""
    settings = ["target_splits=[speaker_dev,speaker_test]", f"targets={args.targets}", f"test_pairs={args.pairs}"]
    settings += ["dev_pairs=4"]
    if not reads_features(args, curve):
        return settings
    source = load_vocoder(args.vocoder).source
    if source is None:
        raise SystemExit(f"{args.vocoder} reads log-mel: give a vocoder that reads features.")
    settings += [f"vocoder={args.vocoder}", "matching=raw", f"features.layers=[{source.layer}]"]
    return [*settings, "features.normalize=false", "train.steps=0"]


def measure(args: argparse.Namespace, curve: str, point: str, settings: Sequence[str]) -> list[RunResult]:
    """One point, all seeds."""
    return speechssl.run(
        "voice_conversion_demo",
        upstream=point if curve == "upstream" else args.upstream,
        corpus=args.corpus,
        yaml=args.yaml,
        overrides=[*of_all(args, curve), *settings],
        seeds=args.seeds,
        out=args.output / curve / point.replace(":", "-"),
        options=RunOptions(cache_folder=str(args.output / "cache")),
    )


def row(results: Sequence[RunResult], condition: str | None = None) -> list[float | None]:
    """Means over seeds of what the judges say of the conversions, or of an anchor."""
    found: list[float | None] = []
    for name in JUDGED:
        if condition is None:
            values = [r.test.metrics[name].value for r in results if name in r.test.metrics]
        else:
            tables = [r.test.breakdown.get(ANCHORS.format(name), {}) for r in results]
            values = [table[condition].value for table in tables if condition in table]
        found.append(statistics.mean(values) if values else None)
    return found


def draw(path: Path, curves: Mapping[str, Mapping[str, Sequence[float | None]]]) -> None:
    """A panel per curve: nearness to the target and word errors."""
    from matplotlib.figure import Figure

    names = list(JUDGED)
    figure = Figure(figsize=(3.6 * len(curves), 3.2), layout="constrained")
    for axes, (curve, points) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for name in ("nearer_target", "wer"):
            values = [values[names.index(name)] for values in points.values()]
            axes.plot(list(points), [float("nan") if v is None else v for v in values], "o-", label=JUDGED[name])
        axes.set(xlabel=curve, ylim=(0, None))
    figure.axes[0].legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("data/demo"))
    parser.add_argument("--only", nargs="+", choices=list(sweeps((), ())), default=list(sweeps((), ())))
    parser.add_argument("--upstream", default="speechssl_tiny", help="of the other curves")
    parser.add_argument("--upstreams", nargs="+", default=["fbank", "hubert_tiny:random", "speechssl_tiny"])
    parser.add_argument("--layers", nargs="+", type=int, default=[0, 2, 4, 6])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--vocoder", type=Path, help="folder of `speechssl vocoder --upstream`")
    parser.add_argument("--targets", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=50, help="conversions that are judged")
    parser.add_argument("--yaml", type=Path, help="further settings")
    parser.add_argument("-o", "--output", type=Path, default=Path("exp/conversion"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    curves: dict[str, dict[str, list[float | None]]] = {}
    anchors: dict[str, list[float | None]] = {}
    for curve in args.only:
        for point, settings in sweeps(args.layers, args.upstreams)[curve].items():
            results = measure(args, curve, point, settings)
            curves.setdefault(curve, {})[point] = row(results)
            conditions = {c for r in results for c in r.test.breakdown.get(ANCHORS.format("similarity"), {})}
            spoken = args.vocoder if reads_features(args, curve) else "universal HiFi-GAN"
            for condition in sorted(conditions - {"converted"}):
                name = f"{condition}, {spoken}"
                anchors.setdefault(name, row(results, condition))
    draw(args.output / "curves.svg", curves)
    print(f"| curve | point | {' | '.join(JUDGED.values())} |\n|---|---|{'---|' * len(JUDGED)}")
    rows = [("anchor", name, values) for name, values in anchors.items()]
    rows += [(curve, point, values) for curve, points in curves.items() for point, values in points.items()]
    for curve, point, values in rows:
        print(f"| {curve} | {point} | {' | '.join('' if v is None else f'{v:.3g}' for v in values)} |")


if __name__ == "__main__":
    main()
