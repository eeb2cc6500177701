"""Audio files and a table of what is known about them: for everybody who has no Lhotse manifests.

    speechssl prepare table data/mine --from FOLDER

The folder holds one table, .csv (comma or semicolon) or .tsv, whose first line names the columns, or one per split,
named after it:

    path,split,speaker,emotion            path: relative to the table, or absolute
    audio/a.wav,train,ann,happy           split: none = train, or the name of the file where there are several tables
    audio/b.wav,dev,bob,sad               start, end: seconds, of a part of a long file
                                          id: none = the path, and the start where there is one
                                          each other column is a label; an empty cell is no label

Labels of parts of an utterance, such as the tones of its syllables, stand in segments.csv (or .tsv), one line each:

    id,start,end,tone                     id: of the utterance; start, end: seconds from its beginning
    audio-a,0.10,0.32,2                   each other column is a label, a list of {start, end, value}
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from speechssl.data.corpora.base import Count, Item, Reading, read_table
from speechssl.data.corpora.lhotse_manifests import USUAL
from speechssl.errors import ManifestError, nearest, suggest
from speechssl.text_files import read_lines

NAME = "a table of audio files"
HOMEPAGE = "https://www.rfc-editor.org/rfc/rfc4180"
LICENCE = "that of the corpus"
LAYOUT = "a .csv or .tsv file with a column 'path'"
EXPECTED: dict[str, Count] = {}
"""The table says what there should be."""
SUFFIXES = (".csv", ".tsv")
SEGMENTS = "segments"
"""The stem of the table of parts of utterances."""
OWN = ("path", "id", "split", "start", "end")
"""Columns that are no labels."""
Segments = list[dict[str, float | str]]
"""Each with start, end (seconds) and value."""


@dataclass(frozen=True)
class TableConfig:
    """What the splits are called."""

    splits: dict[str, str] = field(default_factory=dict)
    """Name in the table -> name here, such as {training: train}; several may become one."""


CONFIG = TableConfig()


def read(source: Path, config: TableConfig) -> Reading:
    """Lists what the tables name."""
    tables, segments = _find_tables(source)
    splits: dict[str, list[Item]] = {}
    seen: dict[str, str] = {}
    for path in tables:
        for where, row in _rows(path, ("path",)):
            split = row["split"].strip() if "split" in row else path.stem if len(tables) > 1 else "train"
            if not split:
                raise ManifestError(f"{where} names no split: fill in the column 'split', or leave the column out.")
            item = _item(where, row, path.parent)
            if item.id in seen:
                raise ManifestError(f"{where} has the id '{item.id}', as has {seen[item.id]}: ids must be unique.")
            seen[item.id] = where.removesuffix(",")
            splits.setdefault(split, []).append(item)
    if not splits:
        raise ManifestError(f"{tables[0]} has a first line and no other: add a line for each utterance.")
    for name in config.splits:
        if name not in splits:
            raise ManifestError(f"{source} has no split '{name}'.{suggest(name, splits)}")
    parts = {} if segments is None else _read_segments(segments, seen)
    found: dict[str, list[Item]] = {}
    for split, items in splits.items():
        whole = [_with_parts(item, parts.get(item.id, {}), seen[item.id]) for item in items]
        found.setdefault(config.splits.get(split, USUAL.get(split, split)), []).extend(whole)
    return Reading(found, EXPECTED)


def _find_tables(source: Path) -> tuple[list[Path], Path | None]:
    """The tables of utterances, sorted, and that of segments."""
    if not source.exists():
        raise ManifestError(f"The folder {source} does not exist: give with --from where you have {NAME}.")
    found = sorted(source.iterdir()) if source.is_dir() else [source]
    tables = [p for p in found if p.suffix in SUFFIXES and p.is_file() and not p.name.startswith(".")]
    segments = [p for p in tables if p.stem == SEGMENTS]
    if len(segments) > 1:
        raise ManifestError(f"{source} holds {segments[0].name} and {segments[1].name}: keep one of them.")
    tables = [p for p in tables if p.stem != SEGMENTS]
    if not tables:
        raise ManifestError(f"{source} does not hold {NAME} (it has none): give with --from a folder with {LAYOUT}.")
    return tables, segments[0] if segments else None


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """As `read_table`, with the delimiter that the first line has."""
    tabbed = path.suffix == ".tsv"
    where, first = next(read_lines(path), (f"{path}, line 1,", ""))
    delimiter = "\t" if tabbed else ";" if ";" in first and "," not in first else ","
    header = [name.strip(' "') for name in first.split(delimiter)]
    twins = sorted({name for name in header if header.count(name) > 1})
    if twins:
        raise ManifestError(f"{where} names the column '{twins[0]}' twice: rename one of them.")
    return read_table(path, columns, delimiter=delimiter, quoted=not tabbed)


def _item(where: str, row: Mapping[str, str], folder: Path) -> Item:
    if not row["path"].strip():
        raise ManifestError(f"{where} names no audio file: fill in the column 'path'.")
    start, end = _seconds(row, "start", where), _seconds(row, "end", where)
    begin = 0.0 if start is None else start
    if end is not None and end <= begin:
        raise ManifestError(f"{where} ends at {end:g} s, but begins at {begin:g} s.")
    labels = {key: value.strip() for key, value in row.items() if key not in OWN and value.strip()}
    path = str((folder / row["path"].strip()).absolute())
    return Item(_id(row, where), path, labels, begin, None if end is None else round(end - begin, 6))


def _with_parts(item: Item, parts: Mapping[str, Segments], where: str) -> Item:
    both = sorted(item.labels.keys() & parts.keys())
    if both:
        raise ManifestError(f"{where}, has a label '{both[0]}', and so have its segments: rename one of them.")
    return replace(item, labels={**item.labels, **parts}) if parts else item


def _id(row: Mapping[str, str], where: str) -> str:
    """As the table says, or made of the path and the start."""
    if "id" in row:
        if not row["id"].strip():
            raise ManifestError(f"{where} has no id: fill in the column 'id', or leave the column out.")
        return row["id"].strip()
    path = PurePath(row["path"].strip())
    name = "-".join(part for part in path.with_suffix("").parts if part not in (path.anchor, ".."))
    start = _seconds(row, "start", where)
    return name if start is None else f"{name}-{start:.3f}"


def _seconds(row: Mapping[str, str], column: str, where: str) -> float | None:
    """A time; None where there is none."""
    text = row.get(column, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ManifestError(f"{where} has '{text}' as '{column}', which must be seconds, 0 or more.")
    return value


def _read_segments(path: Path, known: Mapping[str, str]) -> dict[str, dict[str, Segments]]:
    """Utterance -> label -> its segments, by their beginnings."""
    parts: dict[str, dict[str, Segments]] = {}
    for where, row in _rows(path, ("id", "start", "end")):
        name = row["id"].strip()
        if name not in known:
            raise ManifestError(f"{where} has a segment of '{name}', which no table has.{nearest(name, known)}")
        start, end = _seconds(row, "start", where), _seconds(row, "end", where)
        if start is None or end is None or end <= start:
            raise ManifestError(f"{where} must have a start and a later end, but has '{row['start']}', '{row['end']}'.")
        for label, value in row.items():
            if label not in OWN and value.strip():
                entry: dict[str, float | str] = {"start": start, "end": end, "value": value.strip()}
                parts.setdefault(name, {}).setdefault(label, []).append(entry)
    for labels in parts.values():
        for entries in labels.values():
            entries.sort(key=lambda entry: float(entry["start"]))
    return parts
