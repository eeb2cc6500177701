"""A value over the time of a recording, with the stretches that stand out."""

from collections.abc import Sequence

from speechssl.report.svg import colour, panel, render, theme

Span = tuple[float, float]
"""Begin and end, seconds."""


@theme()
def over_time_figure(
    windows: Sequence[Span], values: Sequence[float], *, limit: float, marked: Sequence[Span], ylabel: str
) -> str:
    """A point for each window, at its middle; returns SVG.

    Args:
        windows: what each value is of.
        limit: drawn as a line across.
        marked: stretches to be shaded.
        ylabel: what the values are; those of a probability have an axis from 0 to 1.
    """
    figure, axes = panel(width=7.0, height=2.2)
    for begin, end in marked:
        axes.axvspan(begin, end, color=colour(1), alpha=0.25, linewidth=0)
    middles = [(begin + end) / 2 for begin, end in windows]
    axes.plot(middles, values, color=colour(0), marker="o" if len(windows) < 60 else "", markersize=4)
    axes.axhline(limit, color="#808080", linewidth=1, linestyle=":")
    axes.set_xlim(windows[0][0], windows[-1][1])
    if "probability" in ylabel:
        axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("seconds")
    axes.set_ylabel(ylabel)
    return render(figure)
