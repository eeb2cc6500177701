"""The figures of the report. Each function takes plain numbers and returns inline SVG (see `svg`).

Conventions: `series` maps a label to its data, in the order of the page, so that an upstream keeps its colour, line
style and marker throughout. T frames, M mel bands.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechssl.report.svg import MARKERS, colour, panel, render, style, theme

Floats = NDArray[np.float64]
Points = Sequence[tuple[int, float]]
MAX_POINTS = 300  # per line: more is invisible and makes the page heavy
RATE_TICKS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6)


@dataclass(frozen=True)
class Band:
    """A curve over the seeds."""

    steps: Floats
    mean: Floats
    low: Floats
    high: Floats


def band(curves: Sequence[Points]) -> Band | None:
    """Mean, lowest and highest of several seeds at the steps that all of them cover; None where there are none.

    Long curves are averaged in windows, so that at most 300 points remain.
    """
    arrays = [np.asarray(sorted(c), dtype=np.float64) for c in curves if len(c)]
    arrays = [a[np.isfinite(a[:, 1])] for a in arrays]
    arrays = [a for a in arrays if len(a)]
    if not arrays:
        return None
    steps = np.unique(np.concatenate([a[:, 0] for a in arrays]))
    steps = steps[(steps >= max(a[0, 0] for a in arrays)) & (steps <= min(a[-1, 0] for a in arrays))]
    if not steps.size:
        return None
    values = np.stack([np.interp(steps, a[:, 0], a[:, 1]) for a in arrays])  # (seeds, steps)
    steps, values = _thin(steps, values)
    return Band(steps, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def _thin(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    window = -(-steps.size // MAX_POINTS)
    if window == 1:
        return steps, values
    starts = np.arange(0, steps.size, window)
    counts = np.diff(np.append(starts, steps.size))
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts, axis=1) / counts


@theme()
def curves_figure(series: Mapping[str, tuple[int, Band]], *, ylabel: str, percent: bool = False) -> str:
    """Lines over steps with the range of the seeds as a band.

    Args:
        series: label -> (index of its colour, band).
        percent: the values are fractions, to be labelled in %.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure, axes = panel()
    for label, (index, data) in series.items():
        (line,) = axes.plot(data.steps, data.mean, color=colour(index), linestyle=style(index), label=_short(label))
        if data.steps.size < 30:
            line.set(marker=MARKERS[index % len(MARKERS)], markersize=4)
        axes.fill_between(data.steps, data.low, data.high, color=colour(index), alpha=0.2, linewidth=0)
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.3g} %"))
    axes.legend(fontsize=9)
    return render(figure)


@theme()
def layers_figure(series: Mapping[str, tuple[int, ArrayLike]]) -> str:
    """Bars of layer weights, (L + 1,) for each label, and a line at the uniform weight of the deepest."""
    arrays = {label: (index, np.asarray(w, dtype=np.float64)) for label, (index, w) in series.items()}
    figure, axes = panel(width=5.6)
    width = 0.8 / len(arrays)
    hatches = ("", "//", "..", "xx", "\\\\", "++")
    for place, (label, (index, weights)) in enumerate(arrays.items()):
        offset = (place - (len(arrays) - 1) / 2) * width
        axes.bar(
            np.arange(weights.size) + offset,
            weights,
            width,
            color=colour(index),
            label=_short(label),
            hatch=hatches[index % len(hatches)],
            edgecolor=colour(index),
            fill=not hatches[index % len(hatches)],
            linewidth=1.0,
        )
    layers = max(w.size for _, w in arrays.values())
    axes.axhline(1 / layers, color="#808080", linewidth=1, linestyle=":")
    axes.set_xticks(np.arange(0, layers, max(1, layers // 12)))
    axes.set_xlabel("layer (0 = input of the first block)")
    axes.set_ylabel("weight")
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.25)
    axes.legend(fontsize=9, ncols=2)
    return render(figure)


@theme()
def det_figure(series: Mapping[str, tuple[int, Sequence[tuple[Floats, Floats]]]]) -> str:
    """Detection error tradeoff on normal-deviate axes, one thin line per seed.

    Args:
        series: label -> (index of its colour, (miss, false_alarm) of each seed), rates within (0, 1).

    Paper: Martin et al. 1997, "The DET curve in assessment of detection task performance".
    """
    from scipy.stats import norm

    figure, axes = panel(width=4.8, height=4.6)
    lowest = 0.2
    for label, (index, curves) in series.items():
        for number, (miss, alarm) in enumerate(curves):
            lowest = min(lowest, float(miss.min()), float(alarm.min()))
            x, y = _thin_det(norm.ppf(alarm), norm.ppf(miss))
            axes.plot(
                x,
                y,
                color=colour(index),
                linestyle=style(index),
                linewidth=1.4,
                label=_short(label) if number == 0 else None,
            )
    # At least down to 1 %, so that good systems of different tasks look alike; at most to what the trials can show.
    low, high = norm.ppf(max(0.0005, min(lowest, 0.01))), norm.ppf(0.7)
    ticks = [r for r in RATE_TICKS if low <= norm.ppf(r) <= high]
    axes.plot([low, high], [low, high], color="#808080", linewidth=1, linestyle=":")
    axes.set(xlim=(low, high), ylim=(low, high), xlabel="false alarms", ylabel="misses")
    axes.set_xticks(norm.ppf(ticks), [f"{100 * r:g} %" for r in ticks], fontsize=9)
    axes.set_yticks(norm.ppf(ticks), [f"{100 * r:g} %" for r in ticks], fontsize=9)
    axes.legend(fontsize=9)
    return render(figure)


def _thin_det(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Keeps the corners of a staircase whose steps are larger than can be seen."""
    keep = [0] if x.size else []
    for i in range(1, x.size):
        if abs(x[i] - x[keep[-1]]) + abs(y[i] - y[keep[-1]]) > 0.02 or i == x.size - 1:
            keep.append(i)
    return x[keep], y[keep]


@theme()
def spectrogram_figure(spectrogram: NDArray[np.float32], *, f0: Floats, seconds: float) -> str:
    """A log-mel spectrogram with F0 over it, which has an axis of its own, as melody would be flat on that of the mel.

    Args:
        spectrogram: (M, T) dB below its maximum.
        f0: (T,) Hz every 10 ms, NaN where unvoiced.
        seconds: how long it is.
    """
    from matplotlib.ticker import NullFormatter, NullLocator

    from speechssl.report.audio import F0_RANGE, mel_band

    figure, axes = panel(width=3.9, height=2.0)
    bands = spectrogram.shape[0]
    axes.imshow(
        spectrogram,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=-80,
        vmax=0,
        extent=(0, seconds, -0.5, bands - 0.5),
        interpolation="nearest",
    )
    kilohertz = (0.5, 1, 2, 4)
    axes.set_yticks(mel_band(np.array(kilohertz) * 1000.0), [f"{k:g}" for k in kilohertz], fontsize=9)
    axes.set(xlim=(0, seconds), ylim=(-0.5, bands - 0.5))
    axes.tick_params(labelsize=9)
    axes.set_xlabel("seconds", fontsize=9)
    axes.set_ylabel("kHz", fontsize=9)
    axes.grid(visible=False)
    pitch = axes.twinx()
    pitch.plot(np.arange(f0.size) * 0.01, f0, color="#00e5ff", linewidth=1.6)
    pitch.set_yscale("log")
    pitch.set_ylim(*F0_RANGE)
    pitch.set_yticks([100, 200, 400], ["100", "200", "400"], fontsize=9)
    pitch.yaxis.set_minor_locator(NullLocator())
    pitch.yaxis.set_minor_formatter(NullFormatter())
    pitch.set_ylabel("pitch, Hz", fontsize=9)
    pitch.grid(visible=False)
    return render(figure)


def _short(label: str) -> str:
    """A legend entry: `$` and a leading `_` mean something to matplotlib, and long labels cover the plot."""
    text = label if len(label) <= 32 else label[:31] + "…"
    return text.replace("$", r"\$").replace("_", "\u200b_", 1) if text.startswith("_") else text.replace("$", r"\$")
