"""The end of an analysis on a terminal."""

from speechssl.analysis.page.tables import best_table
from speechssl.analysis.result import Analysis
from speechssl.console import FittingTable


def console_table(analysis: Analysis) -> FittingTable:
    """Which layer of each model is best for what, as on the page."""
    shown = [m for m in analysis.models if not m.series] or list(analysis.models)
    table = best_table(shown)
    title = "Best layers"
    if table is None:
        return FittingTable(title, ["measures", "models"], [["none", ", ".join(m.model for m in shown)]])
    rows = [[f"{c.text} ({c.note})" if c.note else c.text for c in row] for row in table.rows]
    return FittingTable(title, [c.text.lower() if k == 0 else c.text for k, c in enumerate(table.header)], rows)
