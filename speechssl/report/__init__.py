"""The report: one self-contained HTML page about finished runs, and the same table for a terminal."""

from speechssl.report.page import Written, write_report
from speechssl.report.table import console_table

__all__ = ["Written", "console_table", "write_report"]
