"""What judges say of each system, beside the anchors that any system is measured against.

A task says so in breakdowns named '<metric> by condition', each condition -> value. The condition whose values are the
run's own metrics is what the system made; the others are anchors, such as the source unconverted or real speech
through the vocoder. Finished files that `speechssl score` has judged are systems too.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from speechssl.report.blocks import Cell, Table
from speechssl.report.collect import Scored
from speechssl.report.summary import Group, Summary, summarise
from speechssl.report.table import EMPTY
from speechssl.report.words import (
    CONDITION,
    Direction,
    arrow,
    capital,
    direction,
    format_count,
    format_interval,
    format_value,
    join_words,
    metric_title,
)
from speechssl.result import MetricValue, RunResult

Row = tuple[Cell, Mapping[str, Summary | None], bool]
"""Head, metric -> value, and whether it is a system and not an anchor."""


def judges_table(groups: Sequence[Group]) -> Table | None:
    """System × judge, the anchors above and below as the runs list them; None where a task has no conditions."""
    results = [r for g in groups for r in g.results]
    compared = [n.removesuffix(CONDITION) for r in results for n in r.test.breakdown if n.endswith(CONDITION)]
    metrics = _unique([*compared, *(m for r in results for m in r.test.metrics)])
    conditions = _unique(c for r in results for m in metrics for c in r.test.breakdown.get(m + CONDITION, {}))
    rows: list[Row] = []
    for condition in conditions:
        rows += _rows(groups, metrics, condition)
    if not rows:
        return None
    anchors = [head.text for head, _, system in rows if not system]
    caption = (
        "Mean over the test split, over the seeds where there are several; in brackets the 95 % interval. "
        "↓ lower is better, ↑ higher is better. Bold: the best system. "
    )
    if anchors:
        caption += f"Anchors that were judged alike, and are no systems: {join_words(_unique(anchors))}."
    ways = {m: direction(m) for m in metrics}
    if groups[0].metric in ways:
        ways[groups[0].metric] = "up" if groups[0].higher_is_better else "down"
    return _table("What the judges say of each system", caption.strip(), "System", ways, rows)


def _rows(groups: Sequence[Group], metrics: Sequence[str], condition: str) -> list[Row]:
    """One row for each system, or one of an anchor that all systems share."""
    found = []
    for group in groups:
        judged = [r for r in group.results if any(_judged(r, m, condition) for m in metrics)]
        made = all(_made(r, metrics, condition) for r in judged)
        given = {
            m: [_judged(r, m, condition) or (r.test.metrics.get(m) if made else None) for r in judged] for m in metrics
        }
        if judged:
            found.append((group, {m: _over_seeds(values, made) for m, values in given.items()}, made))
    name = capital(condition)
    if found and not any(made for *_, made in found) and all(v == found[0][1] for _, v, _ in found):
        return [(Cell(name, _counts(found[0][1])), found[0][1], False)]
    return [
        (Cell(group.label if made else f"{name}: {group.label}", f"{condition}, {_counts(v)}"), v, made)
        for group, v, made in found
    ]


def _judged(result: RunResult, metric: str, condition: str) -> MetricValue | None:
    return result.test.breakdown.get(metric + CONDITION, {}).get(condition)


def _over_seeds(values: Sequence[MetricValue | None], made: bool) -> Summary | None:
    found = [v for v in values if v is not None]
    # An anchor is judged once: equal values of several seeds are one measurement, with the interval of its own.
    return summarise(found if made or len({v.value for v in found}) > 1 else found[:1])


def _made(result: RunResult, metrics: Sequence[str], condition: str) -> bool:
    """Whether a condition is what the system made: then its values are the run's own."""
    own = {m: result.test.metrics.get(m) for m in metrics}
    pairs = [(a, b) for m, a in own.items() if a is not None and (b := _judged(result, m, condition)) is not None]
    return bool(pairs) and all(a.value == b.value for a, b in pairs if not math.isnan(a.value))


def scored_tables(scored: Sequence[Scored]) -> list[tuple[str, Table]]:
    """(task, table) of the files that `speechssl score` has judged."""
    found = []
    for task in _unique(s.task for s in scored):
        some = [s for s in scored if s.task == task]
        metrics = _unique(m for s in some for m in s.metrics)
        rows: list[Row] = []
        for files in some:
            for condition in _unique(c for values in files.metrics.values() for c in values):
                given = {m: files.metrics.get(m, {}).get(condition) for m in metrics}
                values = {m: None if v is None else summarise([v]) for m, v in given.items()}
                head = Cell(f"{files.name}: {condition}", _counts(values))
                rows.append((head, values, False))
        notes = _unique(f"{s.name}: {note}" for s in some for note in s.notes)
        caption = (
            "As `speechssl score` measured them, with 95 % intervals over the files. ↓ lower is better, ↑ higher is "
            f"better. {' '.join(notes)}"
        )
        found.append(
            (
                task,
                _table("Scores of finished files", caption.strip(), "Files", {m: direction(m) for m in metrics}, rows),
            )
        )
    return found


def _table(title: str, caption: str, first: str, ways: Mapping[str, Direction], rows: Sequence[Row]) -> Table:
    header = [Cell(first), *(Cell(f"{capital(metric_title(m))} {arrow(way)}".strip()) for m, way in ways.items())]
    best = {m: _best([values[m] for _, values, system in rows if system], way) for m, way in ways.items()}
    cells = [[head, *(_cell(values[m], m, best[m] if system else None) for m in ways)] for head, values, system in rows]
    return Table(title, caption, header, cells)


def _cell(value: Summary | None, metric: str, best: float | None) -> Cell:
    if value is None:
        return EMPTY
    seeds = f"\n{value.seeds} seeds" if value.over == "seeds" else ""
    interval = format_interval(value.mean, value.low, value.high, metric)
    return Cell(format_value(value.mean, metric), f"{interval}{seeds}", value.mean == best)


def _best(systems: Sequence[Summary | None], way: Direction) -> float | None:
    """The best mean; None where there is nothing to compare."""
    means = [s.mean for s in systems if s is not None]
    if len(means) < 2 or way is None or len(set(means)) == 1:
        return None
    return max(means) if way == "up" else min(means)


def _counts(values: Mapping[str, Summary | None]) -> str:
    """What most metrics count: words and characters are counted by few."""
    counts = Counter((v.n, v.unit) for v in values.values() if v is not None)
    (n, unit), _ = counts.most_common(1)[0]
    return f"n = {format_count(n)} {unit}"


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
