"""What a manifest says, by number: in memory, or of a large manifest in files that are memory-mapped.

The files are made once, in `default_folder()/manifests`, by whichever process comes first, and made again when the
manifest changes. A million utterances take about 24 bytes of memory each while they are used: what the system maps from
the files comes on top and is given back when memory is short; worker processes share it.
"""

import json
import logging
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from speechssl.data.strings import StringTable, find_twins, hash_string
from speechssl.errors import ConfigError, ManifestError, SpeechsslError, suggest
from speechssl.files import split_member
from speechssl.types import Utterance

logger = logging.getLogger(__name__)
FORMAT = 1
FLUSH = 1 << 16
"""Utterances between two writes."""
SHARD_SIZE = 1000
"""Utterances of an archive, about."""
NONE = "(none)"
"""The label of utterances that lack one."""


@dataclass(frozen=True)
class Column:
    """One label of all utterances."""

    codes: NDArray[np.int32]
    """Place in `names`, (U,)."""
    names: tuple[str, ...]


class UtteranceIndex(ABC, Sequence[Utterance]):
    """Utterances by number, with unique ids."""

    durations: NDArray[np.float64]
    """Seconds; NaN where the manifest has none, (U,)."""
    ids: StringTable
    shards: NDArray[np.int32] | None = None
    """Number of the archive that each is in, (U,); None = files."""

    @abstractmethod
    def labels(self, number: int) -> Mapping[str, Any]:
        """The labels of one."""

    @abstractmethod
    def utterance(self, number: int) -> Utterance:
        """One with its labels."""

    def name(self, number: int) -> str:
        """The id of one."""
        return self.ids[number]

    def column(self, key: str) -> Column:
        """One label of all; those that lack it have the label `NONE`.

        Raises:
            ConfigError: none has it; the message names those that there are.
        """
        names: dict[str, int] = {}
        known: set[str] = set()
        codes = np.empty(len(self), dtype=np.int32)
        for number in range(len(self)):
            labels = self.labels(number)
            if key not in labels:
                known.update(labels)
            codes[number] = names.setdefault(str(labels.get(key, NONE)), len(names))
        if NONE in names and len(names) == 1:
            raise ConfigError(f"No utterance has the label '{key}'.{suggest(key, known)}")
        if NONE in names:
            missing = int((codes == names[NONE]).sum())
            logger.warning(
                "%d of %d utterances lack the label '%s': they are one of their own.", missing, len(self), key
            )
        return Column(codes, tuple(names))

    def __len__(self) -> int:
        return len(self.durations)

    @overload
    def __getitem__(self, number: int) -> Utterance: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Utterance]: ...
    def __getitem__(self, number: "int | slice") -> "Utterance | Sequence[Utterance]":
        if isinstance(number, slice):
            return [self.utterance(i) for i in range(*number.indices(len(self)))]
        size = len(self)
        if not -size <= number < size:
            raise IndexError(f"There are {size} utterances, but {number} was asked for.")
        return self.utterance(number % size)

    def __iter__(self) -> Iterator[Utterance]:
        return (self.utterance(i) for i in range(len(self)))


class ListedIndex(UtteranceIndex):
    """Utterances that are in memory anyway."""

    def __init__(self, utterances: Sequence[Utterance]) -> None:
        """
        Raises:
            ManifestError: two of one id.
        """
        self._utterances = list(utterances)
        self.durations = np.array([np.nan if u.duration is None else u.duration for u in self._utterances])
        self.ids = StringTable.of([u.id for u in self._utterances])
        _check_unique(self.ids, self.ids.hashes())
        self.shards = _shards_of([u.path for u in self._utterances])

    def labels(self, number: int) -> Mapping[str, Any]:
        """The labels of one."""
        return self._utterances[number].labels

    def utterance(self, number: int) -> Utterance:
        """One with its labels."""
        return self._utterances[number]


class MappedIndex(UtteranceIndex):
    """Utterances in memory-mapped files that `write_index` has written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        self.durations = self._map("durations", np.float64)
        self._begins = self._map("begins", np.float64)
        self.ids = StringTable(self._map("ids", np.uint8), self._map("ids.starts", np.int64))
        self._paths = StringTable(self._map("paths", np.uint8), self._map("paths.starts", np.int64))
        self._labels = StringTable(self._map("labels", np.uint8), self._map("labels.starts", np.int64))
        self.shards = self._map("shards", np.int32) if self.meta["shards"] else None

    def _map(self, name: str, dtype: Any) -> NDArray[Any]:
        return np.asarray(np.memmap(self.folder / name, dtype=dtype, mode="r"))

    def labels(self, number: int) -> Mapping[str, Any]:
        """The labels of one."""
        found: dict[str, Any] = json.loads(self._labels.raw(number))
        return found

    def utterance(self, number: int) -> Utterance:
        """One with its labels."""
        begin, duration = float(self._begins[number]), float(self.durations[number])
        known = None if np.isnan(duration) else duration
        return Utterance(self.ids[number], self._paths[number], begin, known, self.labels(number))

    def __reduce__(self) -> tuple[type["MappedIndex"], tuple[Path]]:
        return MappedIndex, (self.folder,)  # or the maps would be pickled as arrays


class JoinedIndex(UtteranceIndex):
    """Several one after the other; ids are '<name>/<id>', and the name is the label 'corpus'."""

    def __init__(self, parts: Mapping[str, UtteranceIndex]) -> None:
        self.names = list(parts)
        self.parts = list(parts.values())
        self.bases = np.cumsum([0, *(len(p) for p in self.parts)])
        self.durations = np.concatenate([p.durations for p in self.parts])
        if any(p.shards is not None for p in self.parts):
            self.shards = _join_shards(self.parts)

    @property
    def ids(self) -> StringTable:  # type: ignore[override]  # made when asked for
        """All ids."""
        return StringTable.of(f"{n}/{i}" for n, part in zip(self.names, self.parts, strict=True) for i in part.ids)

    def place(self, number: int) -> tuple[int, int]:
        """Which part, and the number in it."""
        part = int(np.searchsorted(self.bases, number, side="right")) - 1
        return part, number - int(self.bases[part])

    def name(self, number: int) -> str:
        """The id of one."""
        part, own = self.place(number)
        return f"{self.names[part]}/{self.parts[part].name(own)}"

    def labels(self, number: int) -> Mapping[str, Any]:
        """The labels of one."""
        part, own = self.place(number)
        return {**self.parts[part].labels(own), "corpus": self.names[part]}

    def utterance(self, number: int) -> Utterance:
        """One with its labels."""
        part, own = self.place(number)
        found = self.parts[part].utterance(own)
        labels = {**found.labels, "corpus": self.names[part]}
        return Utterance(f"{self.names[part]}/{found.id}", found.path, found.start, found.duration, labels)

    def column(self, key: str) -> Column:
        """One label of all."""
        if key != "corpus":
            return super().column(key)
        codes = np.repeat(np.arange(len(self.parts), dtype=np.int32), np.diff(self.bases))
        return Column(codes, tuple(self.names))


def write_index(folder: Path, lines: Iterable[tuple[str, Utterance]], meta: Callable[[], Mapping[str, Any]]) -> None:
    """Writes the files of a `MappedIndex`, in memory that does not grow but for 8 bytes per utterance.

    Args:
        folder: exists; `meta.json` in it is written last.
        lines: where each utterance stands in its manifest, and it.
        meta: what else `meta.json` holds, asked for at the end.

    Raises:
        ManifestError: an id twice, or a line feed in one.
    """
    hashes = array("Q")
    archives: dict[Path, int] = {}
    with ExitStack() as stack:
        files = _Files(folder, stack)
        for where, utterance in lines:
            if "\n" in utterance.id or "\n" in utterance.path:
                raise ManifestError(f"{where} has a line feed in its id or path: rename it.")
            member = split_member(utterance.path)
            shard = -1 if member is None else archives.setdefault(member[0], len(archives))
            hashes.append(hash_string(utterance.id.encode()))
            files.add(utterance, shard)
        files.flush()
    if not hashes:
        raise ManifestError(f"There is no utterance in {meta()['manifest']}: check what wrote it.")
    ids = StringTable(
        np.memmap(folder / "ids", dtype=np.uint8, mode="r"), np.memmap(folder / "ids.starts", dtype=np.int64, mode="r")
    )
    _check_unique(ids, np.frombuffer(hashes, dtype=np.uint64))
    written = {"format": FORMAT, "utterances": len(hashes), "shards": len(archives), **meta()}
    (folder / "meta.json").write_text(json.dumps(written, indent=1), encoding="utf-8")


class _Files:
    """The columns of an index that is written."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        def make(name: str) -> BinaryIO:
            return stack.enter_context((folder / name).open("wb"))

        self._numbers: dict[str, tuple[BinaryIO, array[Any]]] = {
            n: (make(n), array(t)) for n, t in (("durations", "d"), ("begins", "d"), ("shards", "i"))
        }
        names = ("ids", "paths", "labels")
        self._texts = {n: (make(n), bytearray()) for n in names}
        self._starts = {n: (make(f"{n}.starts"), array("q", [0])) for n in names}
        self._sizes = dict.fromkeys(names, 0)

    def add(self, utterance: Utterance, shard: int) -> None:
        """Appends one."""
        duration = float("nan") if utterance.duration is None else utterance.duration
        for name, value in (("durations", duration), ("begins", utterance.start), ("shards", shard)):
            self._numbers[name][1].append(value)
        labels = json.dumps(dict(utterance.labels), ensure_ascii=False, separators=(",", ":"))
        for name, text in (("ids", utterance.id), ("paths", utterance.path), ("labels", labels)):
            line = text.encode() + b"\n"
            self._texts[name][1].extend(line)
            self._sizes[name] += len(line)
            self._starts[name][1].append(self._sizes[name])
        if len(self._numbers["begins"][1]) >= FLUSH:
            self.flush()

    def flush(self) -> None:
        """Writes what was collected."""
        for columns in (self._numbers, self._starts):
            for file, values in columns.values():
                values.tofile(file)
                del values[:]
        for file, text in self._texts.values():
            file.write(text)
            text.clear()


def _check_unique(ids: StringTable, hashes: NDArray[np.uint64]) -> None:
    twins = find_twins(hashes)
    if twins is None:
        return
    one, two = twins
    if ids[one] == ids[two]:
        raise ManifestError(
            f"The utterances number {one + 1} and {two + 1} have the same id '{ids[one]}': give each one of its own."
        )
    raise SpeechsslError(f"The ids '{ids[one]}' and '{ids[two]}' have one hash, a rare accident: rename one of them.")


def _shards_of(paths: Sequence[str]) -> NDArray[np.int32] | None:
    members = [split_member(p) for p in paths]
    if not any(members):
        return None
    archives: dict[Path | None, int] = {}
    return np.array([archives.setdefault(m and m[0], len(archives)) for m in members], dtype=np.int32)


def _join_shards(parts: Sequence[UtteranceIndex]) -> NDArray[np.int32]:
    """Numbers of archives over all parts. Files are spread over as many as they would fill, so that an epoch mixes
    them with the archives of other parts."""
    base, found = 0, []
    for part in parts:
        files = np.arange(len(part), dtype=np.int32) % -(-len(part) // SHARD_SIZE)
        own = files if part.shards is None else part.shards
        found.append(own + np.int32(base))
        base += int(own.max(initial=0)) + 1
    return np.concatenate(found)
