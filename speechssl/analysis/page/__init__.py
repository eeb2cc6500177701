"""The page of an analysis: one self-contained HTML file, in the look of the report."""

from speechssl.analysis.page.write import render_page, write_page

__all__ = ["render_page", "write_page"]
