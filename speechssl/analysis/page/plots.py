"""The figures of an analysis, as inline SVG in the look of the report.

T frames, M mel bands, N points.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from speechssl.analysis.result import LayerValue
from speechssl.data.spans import Span
from speechssl.report.svg import MARKERS, colour, panel, render, style, theme

Floats = NDArray[np.float64]


def _short(label: str) -> str:
    return (label if len(label) <= 30 else label[:29] + "…").replace("$", r"\$")


@theme()
def layer_curves(series: Mapping[str, tuple[int, Sequence[LayerValue]]], *, ylabel: str, percent: bool) -> str:
    """A line per model over its layers, with intervals as bands.

    Args:
        series: label -> (index of its colour, values by layer).
        percent: the values are fractions, to be labelled in %.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure, axes = panel()
    for label, (index, values) in series.items():
        layers = np.array([v.layer for v in values])
        middle = np.array([v.value for v in values], dtype=np.float64)
        axes.plot(
            layers, middle, color=colour(index), linestyle=style(index), marker=MARKERS[index % len(MARKERS)],
            markersize=4, label=_short(label),
        )  # fmt: skip
        low = np.array([v.value if v.low is None else v.low for v in values], dtype=np.float64)
        high = np.array([v.value if v.high is None else v.high for v in values], dtype=np.float64)
        if (high > low).any():
            axes.fill_between(layers, low, high, color=colour(index), alpha=0.2, linewidth=0)
    axes.set_xlabel("layer (0 = input of the first block)")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.3g} %"))
    axes.margins(y=0.15)
    axes.legend(fontsize=9)
    return render(figure)


@theme()
def step_curves(series: Mapping[str, tuple[int, Sequence[tuple[int, float]]]], *, ylabel: str) -> str:
    """A line per layer over the steps of a run."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = panel()
    for label, (index, points) in series.items():
        steps, values = zip(*points, strict=True)
        axes.plot(
            steps, values, color=colour(index), linestyle=style(index), marker=MARKERS[index % len(MARKERS)],
            markersize=4, label=_short(label),
        )  # fmt: skip
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.margins(y=0.15)
    axes.legend(fontsize=9)
    return render(figure)


@theme()
def scatter(points: Floats, classes: Sequence[str], order: Sequence[str]) -> str:
    """A map of (N, 2) points, coloured by class.

    Args:
        classes: of each point; those that are not in `order` are grey and in the background.
        order: at most five, each with a colour and a marker of its own.
    """
    figure, axes = panel(width=4.8, height=4.2)
    names = np.array(classes, dtype=object)
    for number, name in enumerate(["", *order]):
        index = names == name if name else ~np.isin(names, list(order))
        if index.any():
            axes.scatter(
                points[index, 0], points[index, 1], s=9, color=colour(number), marker=MARKERS[number % len(MARKERS)],
                alpha=0.75 if name else 0.3, linewidths=0, label=_short(name or "other"),
            )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=1.6)
    return render(figure)


@theme()
def attention_maps(maps: Sequence[tuple[str, NDArray[np.float32]]], *, seconds: float) -> str:
    """Small (T, T) pictures side by side: queries downwards, keys to the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.5 * len(maps), 2.75), layout="constrained")
    for number, (title, weights) in enumerate(maps):
        axes = figure.add_subplot(1, len(maps), number + 1)
        axes.imshow(
            np.sqrt(weights), cmap="magma", vmin=0, vmax=float(np.quantile(np.sqrt(weights), 0.995)) or 1.0,
            extent=(0, seconds, seconds, 0), interpolation="nearest",
        )  # fmt: skip
        axes.set_title(title)
        axes.grid(visible=False)
        axes.tick_params(labelsize=9)
        axes.set_xlabel("heard at, s", fontsize=9)
        if number == 0:
            axes.set_ylabel("frame at, s", fontsize=9)
    return render(figure)


@theme()
def units_figure(
    spectrogram: NDArray[np.float32], phones: Sequence[Span], units: Mapping[str, tuple[int, Floats]], *, seconds: float
) -> str:
    """A spectrogram with its phones, and below it where the units of each model change.

    Args:
        spectrogram: (M, T) dB below its maximum.
        phones: seconds.
        units: model -> (index of its colour, times at which one unit ends and the next begins, seconds).
    """
    from matplotlib.figure import Figure

    rows = [3.0, *([0.5] * len(units))]
    figure = Figure(figsize=(8.6, 2.3 + 0.42 * len(units)), layout="constrained")
    grid = figure.add_gridspec(len(rows), 1, height_ratios=rows)
    axes = figure.add_subplot(grid[0])
    axes.imshow(
        spectrogram, origin="lower", aspect="auto", cmap="magma", vmin=-80, vmax=0,
        extent=(0, seconds, 0, spectrogram.shape[0]), interpolation="nearest",
    )  # fmt: skip
    for span in phones:
        axes.axvline(span.begin, color="#ffffff", linewidth=0.7, alpha=0.8)
        if span.end - span.begin > seconds / 50:
            axes.text(
                (span.begin + span.end) / 2, spectrogram.shape[0] * 0.93, str(span.value), color="#ffffff", fontsize=8,
                ha="center", va="center",
            )  # fmt: skip
    axes.set(xlim=(0, seconds))
    axes.set_yticks([])
    axes.set_ylabel("frequency (mel)", fontsize=9)
    axes.grid(visible=False)
    axes.tick_params(labelbottom=not units, labelsize=9)
    for number, (label, (index, edges)) in enumerate(units.items()):
        strip = figure.add_subplot(grid[number + 1])
        bounds = np.concatenate([[0.0], edges, [seconds]])
        for k, (begin, end) in enumerate(pairwise(bounds)):
            strip.axvspan(begin, end, color=colour(index), alpha=0.75 if k % 2 else 0.3, linewidth=0)
        strip.set(xlim=(0, seconds), yticks=[])
        strip.grid(visible=False)
        strip.set_ylabel(_short(label), fontsize=8, rotation=0, ha="right", va="center")
        last = number == len(units) - 1
        strip.tick_params(labelbottom=last, labelsize=9)
        if last:
            strip.set_xlabel("seconds", fontsize=9)
    return render(figure)
