"""Tables for a terminal of any width."""

import io
import re

import pytest
from rich.console import Console

from speechssl.console import FittingTable

METRICS = [f"metric {name} of the speech" for name in "abcdefghijklm"]


def results(rows: int, metrics: int = len(METRICS)) -> FittingTable:
    """Runs and their metrics, each with a value of its own; voice conversion has thirteen."""
    cells = [
        [f"upstream_{row} (random)", "seed 0", *(f"{row}.{k:02d}00 [0.100, 0.200]" for k in range(metrics))]
        for row in range(rows)
    ]
    return FittingTable("all [of] it", ["upstream", "", *METRICS[:metrics]], cells, keys=2)


def printed(table: FittingTable, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return str(console.file.getvalue()).splitlines()  # type: ignore[attr-defined]  # a StringIO


def values(lines: list[str]) -> list[str]:
    return re.findall(r"\d\.\d\d00\b", "\n".join(lines))


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("metrics", [2, len(METRICS)])
@pytest.mark.parametrize("width", [60, 80, 200, 800])
def test_every_value_is_whole_within_any_width(width: int, metrics: int, rows: int) -> None:
    lines = printed(results(rows, metrics), width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width and "…" not in text
    assert sorted(values(lines)) == [f"{row}.{k:02d}00" for row in range(rows) for k in range(metrics)]
    assert text.count("[0.100, 0.200]") == rows * metrics
    assert all(name in text for name in METRICS[:metrics]) and text.count("all [of] it") == 1
    assert all(f"upstream_{row}" in text for row in range(rows))


def test_room_decides_between_one_line_two_lines_and_places_changed() -> None:
    wide, narrow, least = (printed(results(2, metrics), 100) for metrics in (1, 3, 13))
    assert any("upstream_1 (random)" in line and "1.0000 [0.100, 0.200]" in line for line in wide)
    assert any("upstream_1" in line and len(values([line])) == 3 and "(random)" not in line for line in narrow)
    assert [len(values([line])) for line in least if "metric" in line] == [2] * 13
    assert any("upstream_0" in line and "upstream_1" in line for line in least)


def test_many_runs_with_few_metrics_keep_their_rows_in_several_tables() -> None:
    lines = printed(results(9, 3), 75)
    assert sum("upstream_8" in line for line in lines) == 2
    assert all(len(values([line])) <= 2 for line in lines)


@pytest.mark.parametrize(
    "table", [FittingTable("t", ["a name", "another"], []), FittingTable("t", ["a name"], [["x" * 9]])]
)
def test_a_table_without_rows_or_values_still_has_its_names(table: FittingTable) -> None:
    assert "name" in "".join(printed(table, 8)).replace("│", "").replace("┃", "").replace(" ", "")


def test_a_console_narrower_than_one_column_folds_its_cells() -> None:
    lines = printed(results(1, 1), 24)
    assert max(map(len, lines)) <= 24 and "…" not in "".join(lines)
