"""The curves of the page: every measure over layers, models overlaid, and ranks over the checkpoints of a run."""

import math
from collections.abc import Mapping, Sequence

from speechssl.analysis.page.plots import layer_curves, step_curves
from speechssl.analysis.page.words import interval, names_of, section_of, written
from speechssl.analysis.result import LayerValue, Measure, ModelAnalysis
from speechssl.report.blocks import Cell, Figure, Table
from speechssl.report.words import better_words, capital, join_words

COLOURS = 6
"""How many models can be told apart in one plot."""
FALLEN = 0.5
"""Share of its highest rank below which the end of a run is called collapsed; a choice of ours."""


def colours_of(models: Sequence[ModelAnalysis]) -> dict[str, int]:
    """Label -> index of its colour; the first five avoid grey."""
    return {m.model: (k + 1) % COLOURS for k, m in enumerate(models)}


def curve_figures(models: Sequence[ModelAnalysis], section: str, colours: Mapping[str, int]) -> list[Figure]:
    """A figure for each measure of a section."""
    figures = []
    for name in names_of(models):
        held = [(m, measure) for m in models if (measure := m.measure(name)) is not None]
        if name.split("/")[0] == section and any(_finite(measure) for _, measure in held):
            figures.append(_figure(held[:COLOURS], colours))
    return figures


def _finite(measure: Measure) -> list[LayerValue]:
    return [v for v in measure.values if math.isfinite(v.value)]


def _figure(held: Sequence[tuple[ModelAnalysis, Measure]], colours: Mapping[str, int]) -> Figure:
    first = held[0][1]
    series = {m.model: (colours[m.model], _finite(measure)) for m, measure in held if _finite(measure)}
    unit = first.unit
    ends = []
    for model, measure in held:
        best = measure.best()
        if best is not None:
            ends.append(f"{model.model} is best at layer {best.layer} ({written(best.value, unit)})")
    notes = list(dict.fromkeys(v.note for _, measure in held for v in measure.values if v.note))
    counted = sorted({v.n for _, measure in held for v in measure.values if v.n})
    n = f" n = {counted[0]}" + (f" to {counted[-1]}" if len(counted) > 1 else "") + "." if counted else ""
    caption = (
        f"{better_words(first.better).capitalize()}. {capital(first.source)}.{n} {notes[0] if notes else ''}".strip()
    )
    ylabel = "%" if unit == "share" else unit or first.title.split(" with ")[0].split(",")[0]
    if unit == "share" or len(ylabel) > 34:
        ylabel = ""
    svg = layer_curves(series, ylabel=ylabel, percent=unit == "share")
    alt = f"Line plot of {first.title} over layers: {join_words(ends) or 'see the table'}."
    return Figure(first.title, caption, svg, alt)


def values_table(models: Sequence[ModelAnalysis], section: str) -> Table | None:
    """Every number of a section: a row for each measure and model, a column for each layer."""
    layers = sorted({v.layer for m in models for me in m.measures if section_of(me) == section for v in me.values})
    rows = []
    for name in names_of(models):
        for model in models:
            measure = model.measure(name)
            if measure is None or section_of(measure) != section:
                continue
            best = measure.best()
            by_layer = {v.layer: v for v in measure.values}
            cells = [_cell(by_layer.get(layer), measure, best) for layer in layers]
            unit = "" if measure.unit in ("", "share") else f", {measure.unit}"
            rows.append([Cell(f"{measure.title}{unit}", note=model.model), *cells])
    if not rows:
        return None
    caption = "The best layer of each row is marked; intervals are at 95 %, where there are any."
    return Table("All numbers", caption, [Cell("Measure"), *(Cell(f"layer {k}") for k in layers)], rows)


def _cell(value: LayerValue | None, measure: Measure, best: LayerValue | None) -> Cell:
    if value is None:
        return Cell("–")
    unit = measure.unit if measure.unit == "share" else ""  # the row says any other
    return Cell(written(value.value, unit), note=interval(value, unit), best=value is best)


def series_blocks(models: Sequence[ModelAnalysis]) -> tuple[list[Figure], list[str]]:
    """Ranks over the checkpoints of each run, and sentences about runs that have collapsed."""
    figures, problems = [], []
    for run in dict.fromkeys(m.series for m in models if m.series):
        steps = sorted((m for m in models if m.series == run), key=lambda m: m.step or 0)
        for name in ("rank/rankme", "rank/effective_rank", "rank/mean_cosine", "rank/spread"):
            curves: dict[str, tuple[int, list[tuple[int, float]]]] = {}
            held = [(m.step or 0, measure) for m in steps if (measure := m.measure(name)) is not None]
            if len(held) < 2:
                continue
            layers = [v.layer for v in held[0][1].values]
            for place, layer in enumerate(dict.fromkeys([layers[0], layers[len(layers) // 2], layers[-1]])):
                points = [(s, v.value) for s, me in held for v in me.values if v.layer == layer]
                curves[f"layer {layer}"] = (place + 1, points)
                highest, end = max(v for _, v in points), points[-1][1]
                if name == "rank/rankme" and end < FALLEN * highest:
                    problems.append(
                        f"RankMe of layer {layer} of {run} has fallen from {highest:.1f} to {end:.1f} at step "
                        f"{points[-1][0]}: the run may be collapsing."
                    )
            title = f"{held[0][1].title} over the steps of {run}"
            caption = f"{better_words(held[0][1].better).capitalize()}; a fall shows that a run collapses."
            svg = step_curves(curves, ylabel=held[0][1].unit)
            figures.append(Figure(title, caption, svg, f"Line plot of {title}."))
    return figures, problems
