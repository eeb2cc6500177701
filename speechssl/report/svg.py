"""Matplotlib figures as inline SVG that follows the page: its fonts, its colours, light or dark."""

import io
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"
"""Stand-in for the page's text colour; `render` replaces it."""
SERIES = tuple(f"#01020{i}" for i in range(4, 10))
"""Stand-ins for the page's six series colours (--c0 … --c5, Okabe and Ito's colour-blind-safe set)."""
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
_RC: Any = {
    "svg.fonttype": "none",
    "font.size": 11.0,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "axes.titlesize": 11.0,
    "svg.hashsalt": "speechssl",
}
_numbers = itertools.count()


def colour(index: int) -> str:
    """The colour of the index-th upstream."""
    return SERIES[index % len(SERIES)]


def style(index: int) -> "str | tuple[int, tuple[int, ...]]":
    """The line style of the index-th upstream, so that colour is not the only sign."""
    return STYLES[index % len(STYLES)]


@contextmanager
def theme() -> Iterator[None]:
    """Matplotlib's settings for everything between the making and the rendering of a figure; also a decorator."""
    from matplotlib import rc_context

    with rc_context(_RC):
        yield


def panel(*, width: float = 4.6, height: float = 3.0) -> "tuple[Figure, Axes]":
    """Makes a figure of one panel; the page lays the panels out side by side or below each other.

    Args:
        width: inches, as `height`; only their ratio and the size of the letters count.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def render(figure: "Figure") -> str:
    """Returns the figure as an SVG element: no external reference, ids unique on the page, colours by CSS variables."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    for index, stand_in in enumerate(SERIES):
        text = text.replace(stand_in, f"var(--c{index})")
    text = text.replace(INK, "currentColor")
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    # Hidden from screen readers here: the page labels the figure that holds it.
    text = text.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
    return _own_ids(text).strip()


def _own_ids(text: str) -> str:
    """Drops ids that nothing refers to and makes the others unique on the page."""
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    prefix = f"f{next(_numbers)}-"
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", text)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", text)
