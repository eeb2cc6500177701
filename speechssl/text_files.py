"""Lines of text that people and corpora bring: UTF-8, with or without a byte-order mark, with any line ends, perhaps
packed with gzip.

Lists, tables, transcripts, lexicons, trials and language models are all read here, so that a file which a spreadsheet
or another system has written means the same everywhere. Needs nothing but Python, since it also runs in the
environment of k2.
"""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from speechssl.errors import ManifestError

BYTE_ORDER_MARK = "\ufeff"
PACKED = b"\x1f\x8b"  # how gzip begins


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yields ('<path>, line <n>,', text) of each line that isn't blank, without its end.

    Raises:
        ManifestError: as `all_lines`.
    """
    return ((where, line) for where, line in all_lines(path) if line.strip())


def all_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yields ('<path>, line <n>,', text) of each line, without its end.

    Raises:
        ManifestError: the file is missing, can't be read, or is no UTF-8 text; the message names the line.
    """
    try:
        with path.open("rb") as file:
            packed = file.peek(len(PACKED)).startswith(PACKED)
            lines: Iterable[bytes] = gzip.GzipFile(fileobj=file) if packed else file
            for number, raw in enumerate(_split(lines), start=1):
                where = f"{path}, line {number},"
                yield where, _decode(raw, where)
    except FileNotFoundError as error:
        raise ManifestError(f"The file {path} does not exist: check the path, or fetch it again.") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ManifestError(f"The file {path} can't be read ({reason}): give one that is whole.") from error


def _split(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Also at carriage returns that stand alone, as old spreadsheets end lines."""
    for line in lines:
        yield from line.splitlines()


def _decode(raw: bytes, where: str) -> str:
    """A mark counts for nothing at the beginning of any line: files that had one are joined."""
    try:
        line = raw.decode("utf-8").removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise ManifestError(f"{where} is not UTF-8 text ({error.reason}): convert it, or fetch it again.") from error
    if "\0" in line:
        raise ManifestError(f"{where} is not text: give a text file in UTF-8.")
    return line
