"""Tables for a terminal of any width: what is too wide takes more lines, is turned round or divided, and never cut."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

FRAME = 3
"""Characters beside each cell: two spaces and a line."""
SEAM = re.compile(r" (?=[\[(])|(?<=\d) (?=±)")
"""Where a cell goes on in a line of its own when room is short: before an interval, a deviation, a remark."""
Cells = list[list[Text]]
"""The header and then the rows, each from left to right."""


@dataclass(frozen=True)
class FittingTable:
    """Rows and columns; where they are too wide, in as few tables as that takes, each with the names of its rows.

    The columns are divided among them, or else rows and columns change places first.
    """

    title: str
    header: Sequence[str]
    """What the columns are called."""
    rows: Sequence[Sequence[str]]
    keys: int = 1
    """How many of the first columns name a row."""
    bold: frozenset[int] = frozenset()
    """Rows."""
    marked: frozenset[tuple[int, int]] = frozenset()
    """Row and column of cells that are bold."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields the table, or what it becomes in `options.max_width`."""
        keys, tables = self._tables(options.max_width)
        for number, cells in enumerate(tables):
            yield _table("" if number else self.title, cells, keys=keys)

    def _tables(self, width: int) -> tuple[int, list[Cells]]:
        """How many columns name the rows, and the tables."""
        narrow = self._cells(narrow=True)
        for cells in (self._cells(), narrow):
            if _width(cells) <= width:
                return self.keys, [cells]
        straight, turned = _divide(narrow, width, self.keys), _divide(_turned(narrow, self.keys), width, 1)
        return (self.keys, straight) if len(straight) <= len(turned) else (1, turned)

    def _cells(self, *, narrow: bool = False) -> Cells:
        def text(content: str, bold: bool) -> Text:
            return Text(SEAM.sub("\n", content) if narrow else content, style="bold" if bold else "")

        rows = [
            [text(cell, row in self.bold or (row, column) in self.marked) for column, cell in enumerate(cells)]
            for row, cells in enumerate(self.rows)
        ]
        return [[text(name, False) for name in self.header], *rows]


def _turned(cells: Cells, keys: int) -> Cells:
    """What named the rows names the columns, and the other way round."""
    named = [Text(), *(Text("\n").join(row[:keys]) for row in cells[1:])]
    return [named, *([row[k] for row in cells] for k in range(keys, len(cells[0])))]


def _divide(cells: Cells, width: int, keys: int) -> list[Cells]:
    """Tables with as many of the columns as fit, at least one, behind those that name the rows."""
    widths = [_width([[row[k]] for row in cells]) - 1 for k in range(len(cells[0]))]
    tables: list[list[int]] = [] if len(widths) > keys else [[*range(keys)]]
    room = 0
    for column in range(keys, len(widths)):
        if not tables or widths[column] > room:
            tables.append([*range(keys)])
            room = width - 1 - sum(widths[:keys])
        tables[-1].append(column)
        room -= widths[column]
    return [[[row[k] for k in columns] for row in cells] for columns in tables]


def _table(title: str, cells: Cells, *, keys: int) -> Table:
    table = Table(title=Text(title) if title else None)
    for place, name in enumerate(cells[0]):
        # Folded where even one column is too wide: rich's own choice puts dots in place of what it cuts off.
        table.add_column(name, overflow="fold", justify="left" if place < keys else "right")
    for row in cells[1:]:
        table.add_row(*row)
    return table


def _width(cells: Cells) -> int:
    """Characters from the first line of the frame to the last."""
    columns = [[row[k] for row in cells] for k in range(len(cells[0]))]
    return 1 + sum(FRAME + max(cell_len(line) for t in column for line in t.plain.split("\n")) for column in columns)
