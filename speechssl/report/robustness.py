"""How systems bear disturbances of the test set: what `speechssl score robustness` left beside their results."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from speechssl.augment.disturbances import DISTURBANCES
from speechssl.errors import ManifestError
from speechssl.report.blocks import Cell, Table
from speechssl.report.collect import Run
from speechssl.report.summary import Group, Summary, summarise
from speechssl.report.table import heat_cells
from speechssl.report.words import arrow, capital, direction, format_count, is_rate, metric_title
from speechssl.result import MetricValue
from speechssl.robustness import CHANGE, Metrics, read_robustness

Measured = Mapping[str, Sequence[Mapping[str, Metrics]]]
"""Label -> of each seed, condition -> metrics."""


def robustness_tables(groups: Sequence[Group], runs: Sequence[Run], problems: list[str]) -> list[Table]:
    """The primary metric under each condition, and then all rates; none where nothing was measured."""
    measured = {label: found for label, found in _measured(groups, runs, problems).items() if found}
    if not measured:
        return []
    primary = groups[0].metric
    rates = list(dict.fromkeys(m for found in measured.values() for one in found for v in one.values() for m in v))
    others = [m for m in rates if m != primary and (is_rate(m) or m == CHANGE)]
    way = "higher" if groups[0].higher_is_better else "lower"
    caption = (
        f"The test set under one disturbance after the other, nothing trained anew; {way} is better. Mean over the "
        "seeds with 95 % interval. Stronger shading: larger value."
    )
    tables = [_table(f"Robustness: {metric_title(primary)}", caption, measured, [primary])]
    if others:
        caption = (
            "Decisions are by the threshold that dev gave without disturbance, so the two errors tell which way scores "
            "go. Score change: mean absolute difference to the score of the clean utterance."
        )
        tables.append(_table("Robustness: errors at one threshold", caption, measured, others))
    return tables


def _measured(groups: Sequence[Group], runs: Sequence[Run], problems: list[str]) -> Measured:
    folders = {id(run.result): run.folder for run in runs}
    found: dict[str, list[Mapping[str, Metrics]]] = {}
    for group in groups:
        for result in group.results:
            if (one := _read(folders[id(result)], problems)) is not None:
                found.setdefault(group.label, []).append(one)
    return found


def _read(folder: Path, problems: list[str]) -> Mapping[str, Metrics] | None:
    try:
        found = read_robustness(folder)
    except ManifestError as error:
        problems.append(str(error))
        return None
    return None if found is None else found.conditions


def _table(title: str, caption: str, measured: Measured, metrics: Sequence[str]) -> Table:
    """Conditions × (system, metric)."""
    conditions = [name for name in DISTURBANCES if any(name in one for found in measured.values() for one in found)]
    columns = [(label, metric) for label in measured for metric in metrics]
    values = {
        (name, label, metric): _over_seeds(measured[label], name, metric)
        for name in conditions
        for label, metric in columns
    }
    largest = {m: max((s.mean for k, s in values.items() if k[2] == m and s is not None), default=0.0) for m in metrics}
    counts = {(s.n, s.unit) for s in values.values() if s is not None}
    heard = ", ".join(f"{format_count(n)} {unit}" for n, unit in sorted(counts))
    header = [
        Cell("Condition", f"n = {heard}"),
        *(Cell(*_head(label, metric, len(metrics) > 1)) for label, metric in columns),
    ]
    rows = [
        [
            Cell(capital(name.replace("_", " ")), DISTURBANCES[name].about),
            *(heat_cells([values[name, label, m]], m, largest[m])[0] for label, m in columns),
        ]
        for name in conditions
    ]
    return Table(title, caption, header, rows)


def _head(label: str, metric: str, several: bool) -> tuple[str, str]:
    title = f"{capital(metric_title(metric))} {arrow(direction(metric))}".strip()
    return (title, label) if several else (label, "")


def _over_seeds(seeds: Sequence[Mapping[str, Metrics]], condition: str, metric: str) -> Summary | None:
    values: list[MetricValue] = [one[condition][metric] for one in seeds if metric in one.get(condition, {})]
    return summarise(values)
