"""Many short strings as one array of bytes: a million cost no Python objects, and a file of them is memory-mapped."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

LINE_FEED = 10
BLOCK = 1 << 20
"""Bytes that are looked at together, so that nothing of the size of the whole is made."""


class StringTable(Sequence[str]):
    """Strings without line feeds, looked up one at a time; equal to any sequence of the same strings."""

    def __init__(self, blob: NDArray[np.uint8], starts: NDArray[np.unsignedinteger[Any] | np.int64]) -> None:
        """
        Args:
            blob: the UTF-8 of all strings, one byte between two.
            starts: where each begins, and where one after the last would, (U + 1,).
        """
        self.blob = blob
        self.starts = starts

    @staticmethod
    def from_lines(blob: NDArray[np.uint8]) -> "StringTable":
        """The table of a text of lines; an empty one has none."""
        blocks = [blob[n : n + BLOCK] for n in range(0, len(blob), BLOCK)]
        count = sum(int(np.count_nonzero(b == LINE_FEED)) for b in blocks)
        unended = len(blob) > 0 and blob[-1] != LINE_FEED
        starts: NDArray[Any] = np.zeros(count + 1 + unended, dtype=np.uint32 if len(blob) < 2**32 - 1 else np.int64)
        done = 1
        for number, block in enumerate(blocks):
            found = np.flatnonzero(block == LINE_FEED) + (number * BLOCK + 1)
            starts[done : done + len(found)] = found
            done += len(found)
        if unended:
            starts[-1] = len(blob) + 1
        return StringTable(blob, starts)

    @staticmethod
    def of(strings: Iterable[str]) -> "StringTable":
        """The table of some strings."""
        if isinstance(strings, StringTable):
            return strings
        blob = bytearray()
        for string in strings:
            blob += string.encode()
            blob.append(LINE_FEED)
        return StringTable.from_lines(np.frombuffer(blob, dtype=np.uint8))

    def raw(self, index: int) -> bytes:
        """The UTF-8 of one."""
        return self.blob[int(self.starts[index]) : int(self.starts[index + 1]) - 1].tobytes()

    def text(self) -> NDArray[np.uint8]:
        """All of them with a line feed between two."""
        return self.blob[: max(int(self.starts[-1]) - 1, 0)]

    def hashes(self) -> NDArray[np.uint64]:
        """64 bits of each string."""
        return np.fromiter((hash_string(self.raw(i)) for i in range(len(self))), dtype=np.uint64, count=len(self))

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: "int | slice") -> "str | Sequence[str]":
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"There are {size} strings, but {index} was asked for.")
        return self.raw(index % size).decode()

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[str]:
        return (self.raw(i).decode() for i in range(len(self)))

    def __eq__(self, other: Any) -> bool:
        if isinstance(other, StringTable):
            one, two = self.text(), other.text()
            same = len(self) == len(other) and len(one) == len(two)
            blocks = range(0, len(one), BLOCK)
            return same and all(np.array_equal(one[n : n + BLOCK], two[n : n + BLOCK]) for n in blocks)
        if isinstance(other, Sequence) and not isinstance(other, str):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as of a list: it equals sequences of other types


def hash_string(text: bytes) -> int:
    """64 bits of a string's UTF-8."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def find_twins(hashes: NDArray[np.uint64]) -> tuple[int, int] | None:
    """The first two places with the same hash."""
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    if not len(same):
        return None
    first = min(same.tolist(), key=lambda i: int(order[i + 1]))
    return int(order[first]), int(order[first + 1])


def find_all(wanted: StringTable, known: StringTable) -> NDArray[np.int32]:
    """Where each of `wanted` stands in `known`, -1 = nowhere, (U,).

    Two tables in one order are compared byte by byte; others by hashes of 64 bits, which two different ones of a
    million ids share once in 30 million corpora.
    """
    if wanted == known:
        return np.arange(len(wanted), dtype=np.int32)
    if len(known) == 0:
        return np.full(len(wanted), -1, dtype=np.int32)
    hashes, keys = known.hashes(), wanted.hashes()
    order = np.argsort(hashes).astype(np.int32)
    places = np.searchsorted(hashes, keys, sorter=order).clip(max=len(order) - 1)
    found: NDArray[np.int32] = order[places]
    found[hashes[found] != keys] = -1
    return found
