"""What a corpus module says, and how its lists are read.

A module of this package is one published corpus, named as the module. It has

    NAME, HOMEPAGE, LICENCE    as its publisher states them
    LAYOUT                     what the user's folder must hold, in a few words
    EXPECTED                   split -> Count, as published
    CONFIG                     optional: a frozen dataclass with the settings that a YAML file may change
    read(source, config)       lists the splits without touching the audio

`read` opens no audio file: it says which files there should be. Whether they are there is found out by `audit`, how
long they are by `prepare`. So counting what is missing takes seconds, where opening a million headers takes an hour.
"""

import csv
import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from speechssl.errors import ManifestError, UnknownNameError
from speechssl.text_files import read_lines

HELPERS = ("asvspoof2021", "audit", "base", "prepare", "spoofing", "writing")
"""Modules of this package that are no corpus."""
EXAMPLES = 3
"""How many of a kind are named."""


@dataclass(frozen=True, slots=True)
class Item:
    """One utterance of a split, or a long recording that is to be cut into several."""

    id: str
    """Unique within its split."""
    path: str
    """Absolute."""
    labels: Mapping[str, Any]
    """`text`, `speaker`, `language`, and what the tasks of the corpus need; absent where not known."""
    start: float = 0.0
    """Seconds from the beginning of the file."""
    duration: float | None = None
    """Seconds; None = to the end of the file."""
    pieces: float | None = None
    """Seconds; cut into consecutive pieces of this length, the rest is dropped. None = not cut."""
    partners: tuple[str, ...] = ()
    """Further files that must be there and be as long, such as the clean side of a pair; labels name them."""

    def files(self) -> tuple[str, ...]:
        """All files that must be there."""
        return (self.path, *self.partners)


@dataclass(frozen=True)
class Count:
    """What a publisher says of a split."""

    utterances: int
    """0 = not published."""
    distinct: Mapping[str, int] = field(default_factory=dict)
    """Label -> how many values it has, such as {'speaker': 251}."""
    hours: float | None = None
    optional: bool = False
    """Whether it is no fault if nothing of the split is there."""


@dataclass(frozen=True)
class Note:
    """Something about the lists that is no missing file, but that a user should know."""

    what: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """What a corpus should consist of, according to its lists and folders."""

    splits: Mapping[str, Sequence[Item]]
    """'train', 'dev', 'test', and more where the corpus has more."""
    expected: Mapping[str, Count] = field(default_factory=dict)
    """Published counts of these splits."""
    notes: tuple[Note, ...] = ()
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Lists that belong to the corpus, such as trials: name -> lines, in the ids of the items."""
    counted: tuple[str, ...] = ()
    """Labels of which the audit counts each value in each split, such as the attacks."""


@dataclass(frozen=True)
class NoSettings:
    """The config of a corpus that has nothing to set."""


class CorpusModule(Protocol):
    """The type of the modules."""

    NAME: str
    HOMEPAGE: str
    LICENCE: str
    LAYOUT: str
    EXPECTED: Mapping[str, Count]

    def read(self, source: Path, config: Any) -> Reading:
        """Lists the splits of the corpus in `source`."""


def list_corpora() -> list[str]:
    """The names of the published corpora; nothing is imported."""
    found = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(module.name for module in found if module.name not in HELPERS)


def corpus_module(name: str) -> CorpusModule:
    """Imports one corpus.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in list_corpora():
        raise UnknownNameError("corpus", name, list_corpora())
    module: Any = importlib.import_module(f"{__package__}.{name}")
    return module  # type: ignore[no-any-return]  # a module is no class, so its shape is known by agreement


def find_root(source: Path, marks: Sequence[str], *, name: str, layout: str) -> Path:
    """The folder that holds one of `marks`: `source`, or the one folder in it that does.

    Args:
        name: what to call the corpus.
        layout: what the folder should hold, in words.

    Raises:
        ManifestError: neither; the message says what the folder should hold.
    """
    if not source.is_dir():
        raise ManifestError(f"The folder {source} does not exist: give with --from where you have {name}.")
    candidates = [source, *subfolders(source)]
    found = [folder for folder in candidates if any((folder / mark).exists() for mark in marks)]
    if source in found:
        return source
    if len(found) == 1:
        return found[0]
    why = "several folders in it do" if found else f"it has no {_some(marks[:EXAMPLES])}"
    raise ManifestError(f"{source} does not hold {name} ({why}): give with --from a folder with {layout}.")


def need_file(path: Path, why: str) -> Path:
    """Returns `path`.

    Raises:
        ManifestError: no such file; `why` says what it is for and where to get it.
    """
    if not path.is_file():
        raise ManifestError(f"The list {path} is missing: {why}.")
    return path


def read_table(
    path: Path, columns: Iterable[str], *, delimiter: str = ",", quoted: bool = True
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields ('<path>, line <n>,', column -> value) of a file whose first line names the columns.

    Args:
        columns: those that must be there.
        quoted: whether a quote protects the delimiter; if not, quotes are letters like others.

    Raises:
        ManifestError: missing, not UTF-8, a column missing, or a line with too few or too many values.
    """
    lines = read_lines(path)
    _, first = next(lines, (f"{path}, line 1,", ""))
    header = _split(first, delimiter, quoted)
    absent = [name for name in columns if name not in header]
    if absent:
        raise ManifestError(f"{path}, line 1, names no column {_some(absent)}: is this the corpus's own file?")
    for where, line in lines:
        values = _split(line, delimiter, quoted)
        if len(values) != len(header):
            raise ManifestError(f"{where} has {len(values)} values for {len(header)} columns: fetch the file again.")
        yield where, dict(zip(header, values, strict=True))


def note(what: str, found: Sequence[str]) -> tuple[Note, ...]:
    """One note, or none where nothing was found."""
    return (Note(what, len(found), tuple(found[:EXAMPLES])),) if found else ()


def untrained(splits: Mapping[str, Sequence[Item]], labels: Sequence[str]) -> tuple[Note, ...]:
    """Notes the classes of each label that dev or test have and train lacks."""
    notes: tuple[Note, ...] = ()
    for label in labels:
        seen = {split: {str(item.labels[label]) for item in items} for split, items in splits.items()}
        new = set().union(*(seen.get(split, set()) for split in ("dev", "test"))) - seen.get("train", set())
        notes += note(f"classes of '{label}' without a training example", sorted(new))
    return notes


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name, without hidden ones; none where it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def audio_stems(folder: Path, suffix: str = ".wav") -> list[str]:
    """The names, without suffix and sorted, of the audio files in a folder; none where it does not exist."""
    if not folder.is_dir():
        return []
    names = (p.name for p in folder.iterdir() if p.name.endswith(suffix) and not p.name.startswith("."))
    return sorted(name[: -len(suffix)] for name in names)


def _split(line: str, delimiter: str, quoted: bool) -> list[str]:
    reader = csv.reader if quoted else partial(csv.reader, quoting=csv.QUOTE_NONE)
    return next(reader([line], delimiter=delimiter), [])


def _some(names: Iterable[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)
