"""One HTML page about scores: what was measured, in groups too, and DET curves."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from speechssl.metric.detection import detection_error_tradeoff
from speechssl.report.blocks import Block, Cell, Figure, Section, Table
from speechssl.report.page import render_sections
from speechssl.report.plots import det_figure
from speechssl.result import MetricValue
from speechssl.scoring import Measure, Scores, show_value

Floats = NDArray[np.float64]
Groups = Mapping[str, Mapping[str, Mapping[str, MetricValue]]]
"""Value of a column -> measure -> condition -> value."""
STEP = 0.02
"""Of the normal deviate: points of a curve that are nearer are not told apart."""


def det_points(bona_fide: Floats, spoof: Floats) -> tuple[Floats, Floats]:
    """The corners of a DET curve, few enough to be drawn: miss and false-alarm rates within (0, 1).

    Where a side makes no error its rate is drawn as half an error.
    """
    curve = detection_error_tradeoff(bona_fide, spoof)
    miss = np.clip(curve.miss, 0.5 / bona_fide.size, 1 - 0.5 / bona_fide.size)
    alarm = np.clip(curve.false_alarm, 0.5 / spoof.size, 1 - 0.5 / spoof.size)
    grid = np.stack([np.round(ndtri(rate) / STEP) for rate in (miss, alarm)])
    kept = np.insert(np.any(grid[:, 1:] != grid[:, :-1], axis=0), 0, values=True)
    return miss[kept], alarm[kept]


def render_report(scores: Scores, measures: Mapping[str, Measure], curves: Mapping[str, tuple[Floats, Floats]]) -> str:
    """The page."""
    blocks: list[Block] = [_pooled(scores, measures)]
    if curves:
        series = {name: (place, [curve]) for place, (name, curve) in enumerate(curves.items())}
        caption = (
            "Detection error tradeoff: for each threshold the share of bona fide speech that is refused against the "
            "share of spoofs that pass, on normal-deviate axes. Closer to the lower left corner is better; a curve "
            "crosses the dotted diagonal at its equal error rate."
        )
        blocks.append(Figure("DET curves", caption, det_figure(series), f"DET curves of {', '.join(curves)}."))
    blocks += [_group(column, found, measures) for column, found in scores.breakdown.items() if found]
    section = Section("results", "Results", scores.what, blocks)
    return render_sections([section], title="Scores of deepfake detection", problems=scores.notes)


def _pooled(scores: Scores, measures: Mapping[str, Measure]) -> Table:
    conditions = list(dict.fromkeys(c for values in scores.metrics.values() for c in values))
    rows = [
        [Cell(name, measures[name].about), *(_cell(found.get(c), measures[name]) for c in conditions)]
        for name, found in scores.metrics.items()
    ]
    caption = "Lower is better; in brackets 95 % intervals of the bootstrap over trials, or over the chosen units."
    return Table("All trials", caption, [Cell("Measure"), *map(Cell, conditions)], rows)


def _group(column: str, found: Groups, measures: Mapping[str, Measure]) -> Table:
    pairs = list(dict.fromkeys((m, c) for group in found.values() for m, values in group.items() for c in values))
    header = [Cell(column), *(Cell(measure, condition) for measure, condition in pairs)]
    rows = [
        [
            Cell(value),
            *(_cell(group.get(measure, {}).get(condition), measures[measure]) for measure, condition in pairs),
        ]
        for value, group in found.items()
    ]
    caption = (
        "A property of spoofs alone, such as an attack, is compared with all bona fide speech; one that bona fide "
        "speech has too, such as a codec, with bona fide speech that has it."
    )
    return Table(f"By {column}", caption, header, rows)


def _cell(value: MetricValue | None, measure: Measure) -> Cell:
    if value is None:
        return Cell("")
    text, bracket, interval = show_value(value, measure.unit, measure.digits).partition(" [")
    return Cell(text, f"{bracket.strip()}{interval}")
