"""The tables of the report: upstream × task, all metrics, breakdowns, and costs; the first also for a console."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from speechssl.console import FittingTable
from speechssl.report.blocks import Cell, Table
from speechssl.report.summary import Group, Summary, best_labels, by_task, group_runs, labels_of
from speechssl.report.words import (
    CONDITION,
    CUES,
    Direction,
    arrow,
    better_words,
    capital,
    direction,
    format_count,
    format_interval,
    format_parameters,
    format_seconds,
    format_value,
    is_rate,
    metric_of_group,
    metric_title,
    task_title,
)
from speechssl.result import RunResult

EMPTY = Cell("–")
SPLITS: tuple[Literal["test"], Literal["dev"]] = ("test", "dev")


def _better(higher: bool) -> Direction:
    return "up" if higher else "down"


def main_table(groups: Sequence[Group]) -> Table:
    """Upstream × task: mean over seeds of each task's primary metric with its 95 % interval, the best in bold."""
    tasks = by_task(groups)
    header = [Cell("Upstream")]
    for task, found in tasks.items():
        title = f"{metric_title(found[0].metric)} {arrow(_better(found[0].higher_is_better))}"
        header.append(Cell(task_title(task), f"{title} · {_counted([g.primary() for g in found])}"))
    rows = []
    for label in labels_of(groups):
        cells = [Cell(label)]
        for found in tasks.values():
            group = next((g for g in found if g.label == label), None)
            cells.append(EMPTY if group is None else _value(group.primary(), group.metric, label in best_labels(found)))
        rows.append(cells)
    caption = (
        "Mean over the seeds on the test split. In brackets: 95 % interval over seeds (Student’s t), which says how "
        "much training chance moves the result; with one seed, over the test items. Bold: the best mean. "
        "↓ lower is better, ↑ higher is better. n: what was counted in the test split."
    )
    return Table("Each upstream on each task", caption, header, rows)


def _counted(summaries: Sequence[Summary]) -> str:
    counts = sorted({(s.n, s.unit) for s in summaries})
    return ", ".join(f"n = {format_count(n)} {unit}" for n, unit in counts)


def _value(summary: Summary, metric: str, best: bool = False, heat: float | None = None) -> Cell:
    seeds = f"{summary.seeds} seed{'s' if summary.seeds > 1 else ''}"
    interval = format_interval(summary.mean, summary.low, summary.high, metric)
    return Cell(format_value(summary.mean, metric), f"{interval}\n{seeds}".strip(), best, heat)


def details_table(groups: Sequence[Group]) -> Table:
    """All metrics of one task on dev and test, one row each."""
    names = list(dict.fromkeys(n for g in groups for r in g.results for n in (*r.test.metrics, *r.dev.metrics)))
    rows = []
    for name in names:
        for split in SPLITS:
            found = [g.metric_of(name, split) for g in groups]
            if any(found):
                way = _better(groups[0].higher_is_better) if name == groups[0].metric else direction(name)
                head = Cell(
                    f"{capital(metric_title(name))} {arrow(way)}".strip(), _note(split, [s for s in found if s])
                )
                rows.append([head, *(EMPTY if s is None else _value(s, name) for s in found)])
    caption = (
        "Mean over the seeds and 95 % interval. ↓ lower is better, ↑ higher is better. "
        "The checkpoint was chosen on dev, so only the rows marked test are estimates of quality."
    )
    return Table("All metrics", caption, [Cell("Metric"), *(Cell(g.label) for g in groups)], rows)


def _note(split: str, summaries: Sequence[Summary]) -> str:
    return f"{split}, {_counted(summaries)}"


def breakdown_tables(groups: Sequence[Group]) -> list[Table]:
    """One table, shaded as a heat map, for each breakdown of the test split, such as by language or by attack.

    What compares systems with anchors is left to `judges`.
    """
    names = list(dict.fromkeys(n for g in groups for r in g.results for n in r.test.breakdown))
    names = [n for n in names if not n.endswith(CONDITION) and n != CUES]
    return [t for name in names if (t := _breakdown(groups, name)) is not None]


def _breakdown(groups: Sequence[Group], name: str) -> Table | None:
    entries = list(dict.fromkeys(e for g in groups for r in g.results for e in r.test.breakdown.get(name, {})))
    found = {entry: row for entry in entries if any(row := _entry(groups, name, entry))}
    if not found:
        return None
    labels = [g.label for g in groups]
    if len(groups) > 1 and all(_same(row) for row in found.values()):
        labels, found = ["Every upstream"], {entry: row[:1] for entry, row in found.items()}
    metric = metric_of_group(name)
    named = metric in groups[0].results[0].test.metrics or is_rate(metric) or direction(metric) is not None
    largest = max(s.mean for row in found.values() for s in row if s is not None)
    rows = [
        [Cell(entry, _counted([s for s in row if s])), *heat_cells(row, metric if named else entry, largest)]
        for entry, row in found.items()
    ]
    part = re.sub(r"^ (by|of|per|within|for) ", "", metric_title(name[len(metric) :])) if named else ""
    header = [Cell(capital(part) or "Part"), *(Cell(label) for label in labels)]
    return Table(task_title(name), _breakdown_caption(groups[0], metric if named else ""), header, rows)


def _entry(groups: Sequence[Group], name: str, entry: str) -> list[Summary | None]:
    return [g.of(lambda r: r.test.breakdown.get(name, {}).get(entry)) for g in groups]


def _same(row: Sequence[Summary | None]) -> bool:
    """Whether the value has nothing to do with the upstream, as that of a trivial cue."""
    return all(s is not None and row[0] is not None and s.mean == row[0].mean and s.n == row[0].n for s in row)


def _breakdown_caption(group: Group, metric: str) -> str:
    way = _better(group.higher_is_better) if metric == group.metric else direction(metric)
    better = better_words(way)
    head = f"{capital(metric_title(metric))} on the test split" if metric else "On the test split"
    return f"{head}, mean over the seeds with 95 % interval; {better}. Stronger shading: larger value."


def heat_cells(summaries: Sequence[Summary | None], metric: str, largest: float) -> list[Cell]:
    """Cells shaded by value / largest."""
    return [
        EMPTY if s is None else _value(s, metric, heat=min(1.0, max(0.0, s.mean / largest)) if largest > 0 else 0.0)
        for s in summaries
    ]


def cost_table(groups: Sequence[Group]) -> Table:
    """What each task and upstream cost, over all seeds."""
    stages = list(dict.fromkeys(s for g in groups for r in g.results for s in r.seconds))
    header = ["Task, upstream", "Seeds", *(f"{s}" for s in stages), "total", "Utterances computed", "from cache"]
    header += ["Times real time", "Trained parameters", "Best step"]
    rows = [[Cell(task_title(g.task), g.label), *_cost(g, stages)] for g in groups]
    caption = (
        "Wall time of all seeds together, by stage. “Utterances computed” went through the upstream; the others were "
        "read from the feature cache. “Times real time”: seconds of audio that passed the upstream per second of the "
        "feature stage (higher is faster; – where all came from the cache). Best step: mean over the seeds."
    )
    return Table("Cost of the runs", caption, [Cell(capital(h)) for h in header], rows)


def _cost(group: Group, stages: Sequence[str]) -> list[Cell]:
    results = group.results
    seconds = {s: sum(float(r.seconds.get(s, 0.0)) for r in results) for s in stages}
    computed = sum(float(r.features.get("computed", 0.0)) for r in results)
    cached = sum(float(r.features.get("from_cache", 0.0)) for r in results)
    trained = sorted({r.trained_parameters for r in results})
    adapted = sorted({r.trained["upstream"] for r in results if r.trained.get("upstream")})
    share = f" ({', '.join(format_parameters(p) for p in adapted)} of the upstream)" if adapted else ""
    steps = float(np.mean([r.best_step for r in results]))
    return [
        Cell(str(len(results))),
        *(Cell(format_seconds(seconds[s])) for s in stages),
        Cell(format_seconds(sum(seconds.values()))),
        Cell(format_count(computed)),
        Cell(format_count(cached)),
        Cell(_throughput(results)),
        Cell(", ".join(format_parameters(p) for p in trained) + share),
        Cell(format_count(steps)),
    ]


def _throughput(results: Sequence[RunResult]) -> str:
    """Seconds of audio through the upstream per second, over the runs that computed at least one utterance."""
    audio = seconds = 0.0
    for result in results:
        features: Mapping[str, float] = result.features
        computed, cached = features.get("computed", 0.0), features.get("from_cache", 0.0)
        if computed > 0:
            audio += features.get("audio_seconds", 0.0) * computed / (computed + cached)
            seconds += result.seconds.get("features", 0.0)
    return format_count(audio / seconds) if audio and seconds else "–"


def console_table(results: Sequence[RunResult]) -> FittingTable:
    """The main table for a terminal.

    Args:
        results: finished runs of any tasks, upstreams and seeds.
    """
    table = main_table(group_runs(results))
    header = [f"{head.text}\n{head.note.split(' · ')[0]}".strip() for head in table.header]
    best = frozenset((r, c) for r, row in enumerate(table.rows) for c, cell in enumerate(row) if cell.best)
    rows = [[_line(cell) for cell in row] for row in table.rows]
    return FittingTable("Mean over seeds, [95 % interval]", header, rows, marked=best)


def _line(cell: Cell) -> str:
    return f"{cell.text}{'*' if cell.best else ''}\n{cell.note}".strip()
