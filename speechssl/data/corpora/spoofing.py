"""What the corpora of spoofed speech share: protocols with a key on each line, and files that no protocol names.

Every utterance has the labels `key` ('bonafide' or 'spoof') and `attack` (its name, or 'bonafide'); where a corpus says
them also `speaker`, `gender`, `codec`, `codec_quality`, `transmission`, `vocoder`, `trim`, `subset`, and `original`,
the recording that an utterance was made from.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from speechssl.data.corpora.base import Item, Note, audio_stems, note
from speechssl.errors import ManifestError
from speechssl.text_files import read_lines

BONA_FIDE, SPOOF = "bonafide", "spoof"
KEYS = {
    **dict.fromkeys(("bonafide", "bona-fide", "genuine", "real"), BONA_FIDE),
    **dict.fromkeys(("spoof", "fake"), SPOOF),
}
"""What protocols call the two classes."""
NONE = "-"
"""What stands in the columns that do not apply."""
COUNTED = ("key", "attack")
"""Labels that an audit counts; see `Reading.counted`."""
Row = tuple[str, dict[str, str]]
"""'<path>, line <n>,' and column -> value."""


def read_rows(path: Path, columns: Sequence[str], *, delimiter: str | None = None) -> Iterator[Row]:
    """Yields the lines of a protocol that has no line of names.

    Args:
        columns: names of the columns.
        delimiter: None = white space.

    Raises:
        ManifestError: missing, not UTF-8, or a line with another number of columns.
    """
    for where, line in read_lines(path):
        values = line.strip().split(delimiter)
        if len(values) != len(columns):
            raise ManifestError(
                f"{where} has {len(values)} columns, but must have {len(columns)} ({' '.join(columns)}): fetch the "
                "protocol again."
            )
        yield where, dict(zip(columns, values, strict=True))


def check_rows(path: Path, rows: Iterable[Row], *, column: str = "id", key: str = "key") -> list[Row]:
    """Brings the key to 'bonafide' or 'spoof', and sees that it is one, that no id comes twice, and that bona fide
    speech has no attack.

    Args:
        path: of the protocol.
        column: that of the ids.
        key: that of the keys; a column 'attack' is looked at where there is one.

    Raises:
        ManifestError: with the count of what is wrong and the first line.
    """
    whole = list(rows)
    seen: dict[str, str] = {}
    unknown, twice, contrary = [], [], []
    for where, row in whole:
        if row[key] not in KEYS:
            unknown.append((where, row[key]))
            continue
        row[key] = KEYS[row[key]]
        if row[column] in seen:
            twice.append((where, row[column]))
        seen.setdefault(row[column], where)
        attack = row.get("attack", NONE)
        if attack != NONE and (attack == BONA_FIDE) != (row[key] == BONA_FIDE):
            contrary.append((where, f"{row['attack']} {row[key]}"))
    allowed = ", ".join(f"'{value}'" for value in KEYS)
    _refuse(path, unknown, f"a key that is none of {allowed}")
    _refuse(path, twice, "an id that an earlier line has")
    _refuse(path, contrary, "an attack that its key contradicts")
    return whole


def check_values(path: Path, rows: Sequence[Row], column: str, allowed: Sequence[str]) -> None:
    """Sees that a column that decides about the splits has known values alone.

    Raises:
        ManifestError: with the count of the others and the first line.
    """
    others = [(where, row[column]) for where, row in rows if row[column] not in allowed]
    _refuse(path, others, f"a value of '{column}' that is none of {', '.join(map(repr, allowed))}")


def _refuse(path: Path, found: Sequence[tuple[str, str]], what: str) -> None:
    if found:
        where, value = found[0]
        number = where.removeprefix(f"{path}, ").removesuffix(",")
        raise ManifestError(
            f"{path} has {len(found)} lines with {what}; the first is {number}, '{value}': mend the protocol, or fetch "
            "it again."
        )


def labels_of(row: Mapping[str, str], *, leave: Iterable[str] = ("id",), **extra: str) -> dict[str, str]:
    """The columns that apply, and `extra`; 'attack' is 'bonafide' where the key is."""
    labels = {name: value for name, value in row.items() if name not in leave and value != NONE} | extra
    if row["key"] == BONA_FIDE:
        labels["attack"] = BONA_FIDE
    labels.setdefault("attack", SPOOF)  # the corpus does not say which
    return labels


def unlisted(folder: Path, names: Iterable[str], *, suffix: str = ".flac") -> tuple[Note, ...]:
    """Notes the audio files of a folder that no protocol names.

    Args:
        names: the files that one does, without their suffix.
    """
    known = frozenset(names)
    others = [name for name in audio_stems(folder, suffix) if name not in known]
    return note(f"files of {folder.name} that no protocol names", [str(folder / f"{name}{suffix}") for name in others])


def first_of(root: Path, candidates: Iterable[str], is_there: Callable[[Path], bool]) -> Path | None:
    """The first path below `root` that is there."""
    return next((path for name in candidates if is_there(path := root / name)), None)


def protocol_items(rows: Iterable[Row], folder: Path, *, leave: Iterable[str] = ("id",), **extra: str) -> list[Item]:
    """One item for each line, its file being called <id>.flac."""
    base = str(folder)
    return [Item(row["id"], f"{base}/{row['id']}.flac", labels_of(row, leave=leave, **extra)) for _, row in rows]
