"""The list that `speechssl score voice_conversion` reads: one conversion on each line, as TSV or JSON lines.

Columns: converted, source, target (one file or more: separated by ';' in TSV, a list in JSON), and perhaps text (what
is said), parallel (the target's own recording of the same words), target_speaker and source_speaker (names; without
them files that share a recording are one speaker), f0_min and f0_max (Hz, of the target). Other columns are left alone.
Paths start from the folder of the list.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechssl.errors import ManifestError, nearest
from speechssl.text_files import read_lines

REQUIRED = ("converted", "source", "target")
OPTIONAL = ("text", "parallel", "target_speaker", "source_speaker", "f0_min", "f0_max")
SEPARATOR = ";"
LEAST_F0 = 20.0  # Hz


@dataclass(frozen=True)
class Conversion:
    """A line of the list."""

    where: str
    """'<path>, line <n>,'."""
    converted: Path
    source: Path
    targets: tuple[Path, ...]
    text: str | None = None
    parallel: Path | None = None
    target_speaker: str | None = None
    source_speaker: str | None = None
    f0_range: tuple[float, float] | None = None
    """Hz; None = to be found."""

    def files(self) -> dict[Path, str]:
        """File -> the column that names it."""
        found = {self.converted: "converted", self.source: "source", **dict.fromkeys(self.targets, "target")}
        return found if self.parallel is None else {**found, self.parallel: "parallel"}


def read_conversions(path: Path) -> list[Conversion]:
    """Reads and checks a list; no audio is opened.

    Raises:
        ManifestError: no such list, no lines, a column, value or file that is missing, or a conversion named twice; the
            message names the line.
    """
    found: list[Conversion] = []
    seen: dict[Path, str] = {}
    for where, values in _rows(path):
        conversion = _conversion(where, values, path.parent)
        if conversion.converted in seen:
            raise ManifestError(
                f"{where} names the conversion {conversion.converted} again, after {seen[conversion.converted]} "
                "and has to go: each is scored once."
            )
        seen[conversion.converted] = where
        for file, column in conversion.files().items():
            if not file.is_file():
                raise ManifestError(f"{where} names {file} as '{column}', but there is no such file: mend the path.")
        found.append(conversion)
    if not found:
        raise ManifestError(f"The list {path} names no conversion: give one on each line after the names of columns.")
    return found


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = read_lines(path)
    first = next(lines, None)
    if first is None:
        return
    if first[1].lstrip().startswith("{"):
        yield first[0], _parse(*first)
        for where, line in lines:
            yield where, _parse(where, line)
        return
    header = [name.strip() for name in first[1].split("\t")]
    _check_header(first[0], header)
    for where, line in lines:
        values = [value.strip() for value in line.split("\t")]
        values += [""] * (len(header) - len(values))  # editors drop the empty cells at the end
        if len(values) > len(header):
            raise ManifestError(f"{where} has {len(values)} cells for {len(header)} columns: separate them by tabs.")
        yield where, dict(zip(header, values, strict=True))


def _check_header(where: str, header: list[str]) -> None:
    for name in REQUIRED:
        if name not in header:
            hint = nearest(name, header) if len(header) > 1 else " Separate the names by tabs."
            raise ManifestError(
                f"{where} names no column '{name}' among {', '.join(header)}: a list needs {', '.join(REQUIRED)}.{hint}"
            )
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise ManifestError(f"{where} names the column '{twice}' twice: keep one.")


def _parse(where: str, line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ManifestError(f"{where} is not JSON ({error}): give one object on each line.") from error
    if not isinstance(values, dict):
        raise ManifestError(f"{where} is no JSON object: give one on each line.")
    for name in REQUIRED:
        if name not in values:
            raise ManifestError(f"{where} has no '{name}': a line needs {', '.join(REQUIRED)}.{nearest(name, values)}")
    return values


def _conversion(where: str, values: Mapping[str, Any], folder: Path) -> Conversion:
    targets = values["target"]
    if isinstance(targets, str):
        targets = [part.strip() for part in targets.split(SEPARATOR) if part.strip()]
    if not isinstance(targets, list) or not targets or not all(isinstance(t, str) and t for t in targets):
        raise ManifestError(f"{where} has no file of the target: give one or more, separated by '{SEPARATOR}'.")
    parallel = _text(where, values, "parallel")
    return Conversion(
        where,
        folder / _need(where, values, "converted"),
        folder / _need(where, values, "source"),
        tuple(dict.fromkeys(folder / t for t in targets)),
        _text(where, values, "text"),
        None if parallel is None else folder / parallel,
        _text(where, values, "target_speaker"),
        _text(where, values, "source_speaker"),
        _f0_range(where, values),
    )


def _text(where: str, values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    if value is None or isinstance(value, str | int | float):
        return (str(value).strip() if value is not None else "") or None
    raise ManifestError(f"{where} has a '{name}' that is no text: give a string.")


def _need(where: str, values: Mapping[str, Any], name: str) -> str:
    value = _text(where, values, name)
    if value is None:
        raise ManifestError(f"{where} has an empty '{name}': name a file, or take the line out.")
    return value


def _f0_range(where: str, values: Mapping[str, Any]) -> tuple[float, float] | None:
    ends = [_text(where, values, name) for name in ("f0_min", "f0_max")]
    if ends[0] is None and ends[1] is None:
        return None
    try:
        low, high = (float(end or "") for end in ends)
    except ValueError as error:
        raise ManifestError(f"{where} must have both f0_min and f0_max in Hz, or neither.") from error
    if not LEAST_F0 <= low < high < 2_000.0:
        raise ManifestError(f"{where} has F0 from {low:g} to {high:g} Hz: give {LEAST_F0:g} Hz or more, rising.")
    return low, high
