"""Scores beside what is true: score files joined to a protocol, and groups of its trials.

N trials, in the order of the protocol; K systems.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from downstreams.deepfake_detection.score_table import (
    SPOOF,
    TARGET,
    Table,
    read_protocol,
    read_scores,
    stem,
)
from speechssl.errors import ConfigError, ManifestError, nearest

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
KINDS = {"score": "cm", "asv_score": "asv", "sasv_score": "sasv"}
"""Column of a score file -> what is scored: the countermeasure, the verification, or both as one."""


@dataclass(frozen=True, eq=False)
class Column:
    """One property of all trials."""

    names: Sequence[str]
    codes: NDArray[np.intp]
    """(N,) indices into `names`."""


@dataclass(frozen=True, eq=False)
class Trials:
    """What is true of N trials, and how K systems score them."""

    table: Table
    """The protocol."""
    rows: NDArray[np.intp]
    """(N,) of the table."""
    paired: bool
    """Whether a trial is named by its speaker and its file, and not by its file alone."""
    bona_fide: Mask
    target: Mask | None
    """(N,) the claimed speaker, bona fide; None where nothing is said of speakers."""
    scores: Mapping[str, Floats]
    """'cm', 'asv', 'sasv' -> (N, K), as far as all systems have them."""
    systems: Sequence[str]
    notes: Sequence[str] = ()
    counted: dict[str, Column] = field(default_factory=dict)
    """What `column` has counted already."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def facts(self) -> list[str]:
        """The columns by which trials can be told apart, in the order of the protocol."""
        return [name for name in self.table.columns if name not in {"id", "label", "asv_label", *KINDS}]

    def values(self, name: str) -> list[str]:
        """(N,) of a column of the protocol."""
        column = self.table.columns[name]
        return [column[row] for row in self.rows]

    def column(self, name: str) -> Column:
        """The same, counted."""
        if name not in self.counted:
            codes: dict[str, int] = {}
            values = (codes.setdefault(value, len(codes)) for value in self.values(name))
            found = np.fromiter(values, dtype=np.intp, count=len(self))
            self.counted[name] = Column([name.strip() for name in codes], found)
        return self.counted[name]

    def times(self, factors: Floats) -> "Trials":
        """With the scores of each system's countermeasure, or where there is none all scores, times a factor, (K,)."""
        turned = {"cm"} & self.scores.keys() or self.scores.keys()
        return replace(self, scores={k: s * factors if k in turned else s for k, s in self.scores.items()})

    def sides(self, kind: str, mask: Mask | None = None) -> list[Floats]:
        """Scores, (n, K), of bona fide and spoofed trials of a mask."""
        mask = np.ones(len(self), dtype=bool) if mask is None else mask
        return [self.scores[kind][mask & side] for side in (self.bona_fide, ~self.bona_fide)]

    def three_sides(self, kind: str, mask: Mask | None = None) -> list[Floats]:
        """Scores, (n, K), of targets, non-targets and spoofs of a mask; only with `target`."""
        mask = np.ones(len(self), dtype=bool) if mask is None else mask
        target = self.bona_fide if self.target is None else self.target
        parts = (target, self.bona_fide & ~target, ~self.bona_fide)
        return [self.scores[kind][mask & part] for part in parts]

    def groups(self, name: str) -> Iterator[tuple[str, Mask]]:
        """Yields the values of a column, or of several joined by '+', and the trials that are compared.

        A property that bona fide speech has too, as a codec, chooses among both; one of spoofs alone, as an attack,
        among spoofs, which are compared with all bona fide speech.

        Raises:
            ConfigError: no such column.
        """
        parts = name.split("+")
        for part in parts:
            if part not in self.facts:
                raise ConfigError(
                    f"`by` must name columns of {self.table.path}, which are {', '.join(self.facts) or 'none'}, but is "
                    f"'{part}'.{nearest(part, self.facts)}"
                )
        yield from self._divide([self.column(part) for part in parts], np.ones(len(self), dtype=bool), ())

    def _divide(self, columns: Sequence[Column], mask: Mask, names: tuple[str, ...]) -> Iterator[tuple[str, Mask]]:
        if not columns:
            yield " ".join(names), mask
            return
        column = columns[0]
        shared = self._shared(column)
        present = np.bincount(column.codes[mask], minlength=len(column.names)) > 0
        for code in sorted(np.flatnonzero(present).tolist(), key=lambda code: column.names[code]):
            chosen = column.codes == code
            if shared or (mask & chosen & ~self.bona_fide).any():
                chosen = chosen if shared else chosen | self.bona_fide
                yield from self._divide(columns[1:], mask & chosen, (*names, column.names[code]))

    def _shared(self, column: Column) -> bool:
        real, fake = (
            np.bincount(column.codes[s], minlength=len(column.names)) for s in (self.bona_fide, ~self.bona_fide)
        )
        return bool(((real > 0) & (fake > 0)).any())


def load_trials(paths: Sequence[Path], protocol: Path | None, settings: Mapping[str, str]) -> Trials:
    """Reads the score files of K systems and the protocol, and joins them.

    Args:
        paths: of score files.
        protocol: None = the first score file says itself what is true.
        settings: 'where', 'unmatched' and 'negate', see `score.SETTINGS`.

    Raises:
        ManifestError: files that can't be read or don't belong together, duplicates, one class only; with counts, file
            and first line.
    """
    tables = [read_scores(path) for path in paths]
    truth = tables[0] if protocol is None else read_protocol(protocol, tables[0].columns["id"])
    if protocol is None and not {"label", "asv_label"} & set(truth.columns):
        raise ManifestError(f"{truth.path} does not say what is bona fide: give a protocol as the last file.")
    notes: list[str] = []
    paired = all("speaker" in t.columns for t in (*tables, truth)) and "asv_label" in truth.columns
    names = [_names(table, paired) for table in tables]
    known, short = _index(truth, _names(truth, paired)), False
    if not any(name in known for name in names[0]) and not paired:
        known, short = _index(truth, [stem(name) for name in truth.columns["id"]]), True
        names = [[stem(name) for name in some] for some in names]
    kept = _where(truth, settings, notes)
    rows = [_match(t, n, truth, known, kept, settings, notes) for t, n in zip(tables, names, strict=True)]
    if short:
        notes.append("Names were compared without folders and endings.")
    kept = kept & np.logical_and.reduce([found >= 0 for found in rows])
    if not kept.any():
        raise ManifestError(f"No trial of {truth.path} has a score in {paths[0]}: give the files that belong together.")
    kinds = [column for column in KINDS if all(column in table.columns for table in tables)]
    scores = {
        KINDS[column]: np.stack([t.numbers(column)[r[kept]] for t, r in zip(tables, rows, strict=True)], axis=1)
        for column in kinds
    }
    if not scores:
        raise ManifestError("The score files have no kind of scores in common: give those of one track.")
    bona_fide, target = _truth(truth, kept)
    trials = Trials(truth, np.flatnonzero(kept), paired, bona_fide, target, scores, _system_names(paths), notes)
    return _negate(trials, settings.get("negate", "no"))


def _truth(truth: Table, kept: Mask) -> tuple[Mask, Mask | None]:
    """Which of the kept trials are bona fide, and which are targets.

    Raises:
        ManifestError: one class only.
    """
    keys = truth.keys("label" if "label" in truth.columns else "asv_label")
    bona_fide = np.fromiter((key not in SPOOF for key in keys), dtype=bool, count=len(keys))[kept]
    target = None
    if "asv_label" in truth.columns:
        verified = truth.keys("asv_label")
        target = np.fromiter((key in TARGET for key in verified), dtype=bool, count=len(verified))[kept]
    if bona_fide.all() or not bona_fide.any():
        only, none = ("bona fide", "spoofed") if bona_fide.all() else ("spoofed", "bona fide")
        raise ManifestError(
            f"All {bona_fide.size} trials of {truth.path} are {only}: with no {none} one nothing can be told apart."
        )
    return bona_fide, target


def _names(table: Table, paired: bool) -> Sequence[str]:
    if not paired:
        return table.columns["id"]
    return [f"{speaker} {name}" for speaker, name in zip(table.columns["speaker"], table.columns["id"], strict=True)]


def _index(table: Table, names: Sequence[str]) -> dict[str, int]:
    """Name -> row.

    Raises:
        ManifestError: a name that occurs twice.
    """
    found = dict(zip(names, range(len(names)), strict=True))
    if len(found) == len(names):
        return found
    first: dict[str, int] = {}
    twice = [row for row, name in enumerate(names) if first.setdefault(name, row) != row]
    row = twice[0]
    raise ManifestError(
        f"{table.where(row)} names {names[row]} again, which line {table.lines[first[names[row]]]} has, the first of "
        f"{len(twice)} duplicates: a trial is judged once, so remove them."
    )


def _where(truth: Table, settings: Mapping[str, str], notes: list[str]) -> Mask:
    """The trials that `where` keeps, all its conditions being met."""
    kept = np.ones(len(truth), dtype=bool)
    for condition in filter(None, settings.get("where", "").split(",")):
        name, _, value = condition.partition("=")
        if not value or name not in truth.columns:
            raise ConfigError(
                f"`where` must be COLUMN=VALUE with a column of {truth.path} ({', '.join(sorted(truth.columns))}), but "
                f"is '{condition}'.{nearest(name, truth.columns)}"
            )
        chosen = np.fromiter((text == value for text in truth.columns[name]), dtype=bool, count=len(truth))
        if not chosen.any():
            raise ConfigError(
                f"No line of {truth.path} has the {name} '{value}'.{nearest(value, set(truth.columns[name]))}"
            )
        kept &= chosen
    if not kept.all():
        notes.append(f"{int(kept.sum())} of {kept.size} trials are those where {settings['where']}.")
    return kept


def _match(  # noqa: PLR0917  a join is two tables, and what is said about it
    table: Table,
    names: Sequence[str],
    truth: Table,
    known: Mapping[str, int],
    kept: Mask,
    settings: Mapping[str, str],
    notes: list[str],
) -> NDArray[np.intp]:
    """(N,) the row of each trial in the scores, -1 = none.

    Raises:
        ManifestError: trials without score or scores without trial, unless `unmatched` is 'drop'; duplicates.
    """
    _index(table, names)
    places = np.fromiter((known.get(name, -1) for name in names), dtype=np.intp, count=len(names))
    rows = np.full(len(truth), -1, dtype=np.intp)
    rows[places[places >= 0]] = np.flatnonzero(places >= 0)
    extra, missing = np.flatnonzero(places < 0), np.flatnonzero(kept & (rows < 0))
    _check_labels(table, truth, rows)
    said = []
    if missing.size:
        first = f"{truth.columns['id'][missing[0]]} (line {truth.lines[missing[0]]} of {truth.path})"
        said.append(f"{missing.size} of {int(kept.sum())} trials have no score, first {first}")
    if extra.size:
        line = f"line {table.lines[extra[0]]}"
        said.append(f"{extra.size} of {len(table)} scores are of no trial, first {names[extra[0]]} ({line})")
    if said:
        sentence = f"{table.path}: {', and '.join(said)}"
        if settings.get("unmatched", "error") != "drop":
            raise ManifestError(
                f"{sentence}: give files that belong together, or leave those out with `--set unmatched=drop`."
            )
        notes.append(f"{sentence}: left out.")
    return rows


def _check_labels(table: Table, truth: Table, rows: NDArray[np.intp]) -> None:
    """Score files that say what is true must say what the protocol says."""
    if table is truth or "label" not in table.columns or "label" not in truth.columns:
        return
    ours, theirs = (np.array([key in SPOOF for key in t.keys("label")]) for t in (truth, table))
    wrong = np.flatnonzero((rows >= 0) & (ours != theirs[rows]))
    if wrong.size:
        row = int(wrong[0])
        label, other = truth.columns["label"][row], table.columns["label"][rows[row]]
        raise ManifestError(
            f"{table.where(rows[row])} calls {truth.columns['id'][row]} '{other}', but line {truth.lines[row]} of "
            f"{truth.path} '{label}', the first of {wrong.size} contradictions: give files of one set of trials."
        )


def _system_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ, without the file's ending; of files of one name, those of folders."""
    parts = [path.resolve().with_suffix("").parts for path in paths]
    if len(paths) > 1 and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ManifestError(f"{paths[0]} is given twice: name each score file once.")


def _negate(trials: Trials, wanted: str) -> Trials:
    """Turns round the scores of all systems ('yes') or of some by name."""
    if wanted == "no":
        return trials
    names = trials.systems if wanted == "yes" else wanted.split(",")
    for name in names:
        if name not in trials.systems:
            known = ", ".join(trials.systems)
            raise ConfigError(f"`negate` must be yes, no or names of systems ({known}), but is '{wanted}'.")
    signs = np.array([-1.0 if system in names else 1.0 for system in trials.systems])
    return trials.times(signs)
