"""Tables of text by the million lines: cells stay where they are in the file, and numpy finds, counts and joins them.

N cells of a column, W columns. A cell is a place in the bytes of the file; a word is 8 bytes of it.
"""

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from speechssl.errors import ManifestError
from speechssl.text_files import BYTE_ORDER_MARK, PACKED, all_lines

Places = NDArray[np.intp]
LONGEST = 4096
"""Bytes of a cell."""
MIXERS = np.random.default_rng(0).integers(1, 2**63, LONGEST // 8, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
"""Odd factors of words. Cells of equal hash are compared, so that these decide about speed alone."""


class Texts(Sequence[str]):
    """A column: (N,) cells in the bytes of a file."""

    def __init__(self, content: NDArray[np.uint8], starts: Places, sizes: Places) -> None:
        self.content, self.starts, self.sizes = content, starts, sizes

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """The same of texts that lie nowhere yet."""
        cells = [text.encode() for text in texts]
        sizes = np.fromiter(map(len, cells), dtype=np.intp, count=len(cells))
        return cls(np.frombuffer(b"".join(cells), dtype=np.uint8), np.cumsum(sizes) - sizes, sizes)

    @override
    def __len__(self) -> int:
        return self.starts.size

    @override
    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return self.take(np.arange(len(self))[at])
        start = int(self.starts[at])
        return self.content[start : start + int(self.sizes[at])].tobytes().decode()

    @override
    def __iter__(self) -> Iterator[str]:
        return (cell.decode() for cell in self.cells.tolist())

    def take(self, rows: NDArray[Any]) -> "Texts":
        """Those of some rows, given by numbers or by a mask."""
        return Texts(self.content, self.starts[rows], self.sizes[rows])

    @cached_property
    def cells(self) -> NDArray[np.bytes_]:
        """(N,) padded with bytes 0 to whole words."""
        longest = int(self.sizes.max(initial=0))
        if longest > LONGEST:
            row = int(self.sizes.argmax())
            raise ManifestError(
                f"'{self[row][:40]}...' has {longest} bytes, but cells of a table have up to {LONGEST}."
            )
        width = 8 * max(1, -(-longest // 8))
        content = np.concatenate((self.content, np.zeros(width, dtype=np.uint8)))
        anywhere: NDArray[np.bytes_] = np.ndarray(content.size - width + 1, f"S{width}", content, strides=(1,))
        found = anywhere[self.starts]
        found.view(np.uint8).reshape(-1, width)[np.arange(width) >= self.sizes[:, None]] = 0
        return found

    @cached_property
    def marks(self) -> NDArray[np.uint64]:
        """(N,) hashes: equal texts have equal ones, in any column."""
        words = self.cells.view(np.uint64).reshape(len(self), -1)  # (N, words)
        found = np.zeros(len(self), dtype=np.uint64)
        for place in range(words.shape[1]):
            word = words[:, place]
            found += (word ^ (word >> np.uint64(29))) * MIXERS[place]
        return found

    @cached_property
    def _order(self) -> tuple[Places, NDArray[np.uint64]]:
        order = np.argsort(self.marks)
        return order, self.marks[order]

    def duplicates(self) -> list[tuple[int, int]]:
        """Rows that repeat an earlier one, and that row."""
        _, marks = self._order
        if not (marks[1:] == marks[:-1]).any():
            return []
        first: dict[str, int] = {}
        return [(row, first[name]) for row, name in enumerate(self) if first.setdefault(name, row) != row]

    def find(self, texts: "Texts") -> Places:
        """The row in which each of some texts stands, -1 = in none; of several rows any."""
        if not len(self):
            return np.full(len(texts), -1)
        order, marks = self._order
        asked, wanted = texts._order  # in order, the search runs through memory once
        at = np.searchsorted(marks, wanted).clip(max=marks.size - 1)
        rows = np.empty(len(texts), dtype=np.intp)
        rows[asked] = np.where(marks[at] == wanted, order[at], -1)
        hit = rows >= 0
        if (self.cells[rows[hit]] != texts.cells[hit]).any():
            known = dict(zip(self, range(len(self)), strict=True))
            return np.fromiter((known.get(name, -1) for name in texts), dtype=np.intp, count=len(texts))
        return rows

    @cached_property
    def counted(self) -> tuple[list[str], Places]:
        """The distinct texts in order of appearance, and which of them each is, (N,)."""
        _, first, codes = np.unique(self.marks, return_index=True, return_inverse=True)
        if (self.cells[first][codes] != self.cells).any():
            _, first, codes = np.unique(self.cells, return_index=True, return_inverse=True)
        order = np.argsort(first)
        return list(self.take(first[order])), np.argsort(order)[codes]

    def equal(self, text: str) -> NDArray[np.bool_]:
        """(N,) which of them are that text."""
        names, codes = self.counted
        return codes == names.index(text) if text in names else np.zeros(len(self), dtype=bool)

    def numbers(self) -> NDArray[np.float64]:
        """(N,), of what is no number NaN."""
        try:
            return self.cells.astype(np.float64)
        except ValueError:
            return np.fromiter(map(_number, self), dtype=np.float64, count=len(self))


def read_columns(path: Path, most: int | None = None) -> tuple[list[Texts], Places]:
    """Reads a table: columns that tabs, commas or blanks part, whichever the first line has.

    Args:
        most: lines that are read; None = all.

    Returns:
        W columns of N cells, and the number of each line in the file, (N,). Lines without text are passed over.

    Raises:
        ManifestError: missing, empty, not text, or lines that have not as many columns as the first one.
    """
    content = _content(path) if most is None else "\n".join(line for _, line in islice(all_lines(path), most)).encode()
    head = content.lstrip()
    if not head:
        raise ManifestError(f"{path} is empty: give a file with one line per trial.")
    head = head[: head.find(b"\n")] if b"\n" in head else head
    if b"\t" in head:
        found, counts, numbers = _parted(content, b"\t")
    elif b"," in head and b'"' in content:
        return _quoted(path, content)
    else:
        found, counts, numbers = _parted(content, b",") if b"," in head else _blank_parted(content)
    _check_widths(path, counts, numbers)
    starts, sizes = (part.reshape(numbers.size, -1) for part in found)
    whole = np.frombuffer(content, dtype=np.uint8)
    columns = zip(starts.T, sizes.T, strict=True)
    return [Texts(whole, begin.copy(), size.copy()) for begin, size in columns], numbers


def _content(path: Path) -> bytes:
    """All of a file, lines ending in one line feed.

    Raises:
        ManifestError: as `all_lines`, which finds the line.
    """
    try:
        content = path.read_bytes()
        if content.startswith(PACKED):
            content = gzip.decompress(content)
        content.decode()
        readable = b"\0" not in content
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        readable = False
    if not readable:
        return "\n".join(line for _, line in all_lines(path)).encode()
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    mark = BYTE_ORDER_MARK.encode()
    return content.removeprefix(mark).replace(b"\n" + mark, b"\n")


def _blank_parted(content: bytes) -> tuple[tuple[Places, Places], Places, Places]:
    """Starts and sizes of all cells, and of each line that has any the count of them and its number."""
    blank = np.frombuffer(b"\n" + content + b"\n", dtype=np.uint8) <= ord(" ")
    edges = np.flatnonzero(blank[1:] != blank[:-1])  # where a cell begins, ends, begins, ...
    starts, ends = edges[::2], edges[1::2]
    stops = np.append(np.flatnonzero(np.frombuffer(content, dtype=np.uint8) == ord("\n")), len(content))
    counts = np.diff(np.searchsorted(starts, stops), prepend=0)  # cells of each line
    numbers = np.flatnonzero(counts) + 1
    return (starts, ends - starts), counts[numbers - 1], numbers


def _parted(content: bytes, mark: bytes) -> tuple[tuple[Places, Places], Places, Places]:
    """As `_blank_parted`, of cells that one character parts and that may be empty."""
    content = content if content.endswith(b"\n") else content + b"\n"
    whole = np.frombuffer(content, dtype=np.uint8)
    ends = np.flatnonzero((whole == ord(mark)) | (whole == ord("\n")))
    starts = np.append(0, ends[:-1] + 1)
    last = np.flatnonzero(whole[ends] == ord("\n"))  # cells that end a line
    counts = np.diff(last, prepend=-1)
    # Few lines hold so little beside their marks that they may be without text.
    room = ends[last] - starts[last - counts + 1] - (counts - 1)
    doubtful = np.flatnonzero((room <= 1) | (counts == 1)).tolist()
    empty = [n for n in doubtful if not content[starts[last[n] - counts[n] + 1] : ends[last[n]]].strip()]
    kept = np.ones(last.size, dtype=bool)
    kept[empty] = False
    cells = np.repeat(kept, counts)
    return (starts[cells], (ends - starts)[cells]), counts[kept], np.flatnonzero(kept) + 1


def _quoted(path: Path, content: bytes) -> tuple[list[Texts], Places]:
    """Cells parted by commas, some of them in quotation marks."""
    lines = [(number, line) for number, line in enumerate(content.decode().split("\n"), 1) if line.strip()]
    rows = list(csv.reader(line for _, line in lines))
    numbers = np.array([number for number, _ in lines])
    _check_widths(path, np.array([len(row) for row in rows]), numbers)
    return [Texts.of(column) for column in zip(*rows, strict=True)], numbers


def _check_widths(path: Path, counts: Places, numbers: Places) -> None:
    bad = np.flatnonzero(counts != counts[0])
    if bad.size:
        raise ManifestError(
            f"{path}, line {numbers[bad[0]]}, has {counts[bad[0]]} columns, the first of {bad.size} lines that do "
            f"not have {counts[0]} as line {numbers[0]} has."
        )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
