"""Pack files: many arrays in one append-only file, read back through a memory map without a copy.

    <name>.bin     the arrays, each at a multiple of 64 bytes
    <name>.jsonl   a header line, then one line per finished array: key, offset, shape, checksum

An index line is written after its array, so whatever is interrupted leaves a readable pack: a torn line or an array
that the file does not hold is not there, and an array with a wrong checksum is refused.
"""

import json
import logging
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.errors import SpeechsslError
from speechssl.files import replacing

logger = logging.getLogger(__name__)
ALIGN = 64  # bytes
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Entry:
    """Where one array lies in its pack."""

    key: str
    offset: int
    """Bytes."""
    shape: tuple[int, ...]
    frames: int
    """Valid frames of the utterance (of the array itself, unless it is pooled)."""
    seconds: float
    """Of audio."""
    crc32: int

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Size of the array."""
        return torch.Size(self.shape).numel() * dtype.itemsize


class PackWriter:
    """Writes one pack; `append` returns only when the array can be found again."""

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        """
        Args:
            header: what all arrays of the pack have in common; `dtype` must be a key of DTYPES.
        """
        self.path = folder / f"{uuid.uuid4().hex}.bin"
        self.dtype = DTYPES[header["dtype"]]
        self.size = 0
        self.count = 0
        self._data = FileIO(self.path, "xb")  # unbuffered: after a failed write nothing lingers
        self._index = FileIO(self.path.with_suffix(".jsonl"), "xb")
        try:
            _write_all(self._index, json.dumps(dict(header)).encode() + b"\n")
        except OSError:
            self.close()
            raise

    def append(self, key: str, array: Tensor, *, frames: int, seconds: float) -> None:
        """Adds an array, in the pack's dtype.

        Raises:
            OSError: among others a full disk (see `speechssl.files.FULL`); the pack holds what was there before.
        """
        payload = _buffer(array.to(self.dtype).contiguous().view(-1).view(torch.uint8))
        offset = -(-self.size // ALIGN) * ALIGN
        entry = Entry(key, offset, tuple(array.shape), frames, seconds, zlib.crc32(payload))
        begin = self._index.tell()
        try:
            _write_all(self._data, bytes(offset - self.size))
            _write_all(self._data, payload)
            _write_all(self._index, json.dumps(asdict(entry)).encode() + b"\n")
        except OSError:
            self._data.truncate(self.size)
            self._index.truncate(begin)
            raise
        self.size = offset + len(payload)
        self.count += 1

    def close(self) -> None:
        """Closes the files; a pack without arrays is removed."""
        self._data.close()
        self._index.close()
        if not self.count:
            remove_pack(self.path)


class Pack:
    """A pack that is read: its header, its entries, and its arrays as views of a memory map."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header, entries = _read_index(path)
        self.dtype = DTYPES[self.header["dtype"]]
        size = path.stat().st_size
        self.entries = {e.key: e for e in entries if e.offset + e.num_bytes(self.dtype) <= size}
        if len(self.entries) < len(entries):
            logger.warning("%s was cut off: %d arrays are computed again.", path, len(entries) - len(self.entries))
        # A private mapping: zero-copy, and whatever a caller does in place never reaches the file.
        self._bytes = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8) if size else None

    def array(self, key: str) -> Tensor:
        """The array of a key, a view of the memory map."""
        entry = self.entries[key]
        return self._payload(entry).view(self.dtype).view(entry.shape)

    def drop_corrupt(self, keys: Iterable[str]) -> None:
        """Checks the arrays of `keys` and forgets those whose checksum is wrong, here and in the index file."""
        corrupt = [k for k in keys if zlib.crc32(_buffer(self._payload(self.entries[k]))) != self.entries[k].crc32]
        if not corrupt:
            return
        logger.warning("%s is corrupt: %d arrays are computed again.", self.path, len(corrupt))
        for key in corrupt:
            del self.entries[key]
        lines = [json.dumps(self.header), *(json.dumps(asdict(e)) for e in self.entries.values())]
        with replacing(self.path.with_suffix(".jsonl")) as partial:
            partial.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _payload(self, entry: Entry) -> Tensor:
        if self._bytes is None:
            raise SpeechsslError(f"The pack {self.path} is empty: remove it.")
        return self._bytes[entry.offset : entry.offset + entry.num_bytes(self.dtype)]


def open_packs(folder: Path) -> list[Pack]:
    """Opens all readable packs of a folder; one that can't be read is logged and left alone."""
    packs = []
    for path in sorted(folder.glob("*.bin")):
        try:
            packs.append(Pack(path))
        except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            logger.warning("The pack %s can't be read (%s): its arrays are computed again.", path, error)
    return packs


def remove_pack(path: Path) -> None:
    """Removes a pack, its index first, so that no index ever points to nothing."""
    path.with_suffix(".jsonl").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def pack_bytes(path: Path) -> int:
    """Size of a pack with its index, in bytes; 0 if it is gone."""
    files: Sequence[Path] = (path, path.with_suffix(".jsonl"))
    return sum(p.stat().st_size for p in files if p.exists())


def _read_index(path: Path) -> tuple[dict[str, Any], list[Entry]]:
    lines = path.with_suffix(".jsonl").read_bytes().split(b"\n")
    header: dict[str, Any] = json.loads(lines[0])
    entries = []
    for line in lines[1:-1]:  # what follows the last line feed is empty, or a line torn by an interruption
        try:
            raw = json.loads(line)
            entries.append(Entry(**{**raw, "shape": tuple(raw["shape"])}))
        except (KeyError, TypeError, ValueError) as error:
            logger.warning("A line of the index of %s can't be read (%s): its array is computed again.", path, error)
    return header, entries


def _buffer(array: Tensor) -> memoryview:
    view: Any = array.numpy()
    return memoryview(view)


def _write_all(file: FileIO, data: "bytes | memoryview") -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]
