"""What the page consists of: sections of tables, figures and listening examples, rendered by `page.html`."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cell:
    """One table cell; all text is escaped by the template."""

    text: str
    note: str = ""
    """Smaller text below, such as an interval."""
    best: bool = False
    heat: float | None = None
    """Shading within [0, 1] for tables that are read as heat maps."""
    bar: float | None = None
    """Length within [0, 1] of a bar behind the text."""


@dataclass(frozen=True)
class Table:
    """A table with a header row and a header column."""

    title: str
    caption: str
    """What it shows and which direction is better."""
    header: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    """Each row's first cell is its header."""


@dataclass(frozen=True)
class Figure:
    """A plot with the text that stands beside it."""

    title: str
    caption: str
    svg: str
    alt: str
    """One sentence for screen readers."""
    wide: bool = False
    """Whether it takes the whole width of the page."""


@dataclass(frozen=True)
class Player:
    """An audio player, with its spectrogram where there is one."""

    label: str
    uri: str
    seconds: float
    spectrogram: str = ""
    pitch: float | None = None
    """Median F0, Hz; None = nothing is voiced."""
    notes: Sequence[tuple[str, str]] = ()
    """(label, text) of what is said about this clip alone."""


@dataclass(frozen=True)
class Example:
    """Things to listen to or read side by side."""

    title: str
    texts: Sequence[tuple[str, str]]
    """(label, text)."""
    players: Sequence[Player]


@dataclass(frozen=True)
class Listen:
    """Listening examples of one task."""

    caption: str
    examples: Sequence[Example]


@dataclass(frozen=True)
class Code:
    """Lines to be copied, under a heading that folds them away."""

    title: str
    text: str
    open: bool = False


Block = Table | Figure | Listen | Code


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph, and blocks."""

    id: str
    title: str
    intro: str
    blocks: Sequence[Block] = field(default_factory=tuple)
