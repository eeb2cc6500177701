"""Scores beside what is true: score files joined to a protocol, and groups of its trials.

N trials, in the order of the protocol; K systems.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from downstreams.deepfake_detection.score_join import check_duplicates, chosen_by, join
from downstreams.deepfake_detection.score_table import SPOOF, TARGET, Table, read_protocol, read_scores, stems
from downstreams.deepfake_detection.score_text import Texts
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
        return list(self.table.columns[name].take(self.rows))

    def column(self, name: str) -> Column:
        """The same, counted."""
        if name not in self.counted:
            names, codes = self.table.columns[name].take(self.rows).counted
            self.counted[name] = Column([name.strip() for name in names], codes)
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
        return [self.scores[kind][mask & part] for part in self.kinds()]

    def kinds(self) -> tuple[Mask, Mask, Mask]:
        """(N,) which trials are targets, non-targets and spoofs; only with `target`."""
        target = self.bona_fide if self.target is None else self.target
        return target, self.bona_fide & ~target, ~self.bona_fide

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
    known = _names(truth, paired)
    short = not paired and not (known.find(names[0]) >= 0).any()
    if short:
        known, names = stems(known), [stems(some) for some in names]
        notes.append("Names were compared without folders and endings.")
    check_duplicates(truth, known)
    kept = chosen_by(settings, truth, notes)
    rows = [join(t, n, truth, known, kept, settings, notes) for t, n in zip(tables, names, strict=True)]
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
    bona_fide = ~truth.marked("label" if "label" in truth.columns else "asv_label", SPOOF)[kept]
    target = truth.marked("asv_label", TARGET)[kept] if "asv_label" in truth.columns else None
    if bona_fide.all() or not bona_fide.any():
        only, none = ("bona fide", "spoofed") if bona_fide.all() else ("spoofed", "bona fide")
        raise ManifestError(
            f"All {bona_fide.size} trials of {truth.path} are {only}: with no {none} one nothing can be told apart."
        )
    return bona_fide, target


def _names(table: Table, paired: bool) -> Texts:
    if not paired:
        return table.columns["id"]
    return Texts.of(f"{one} {two}" for one, two in zip(table.columns["speaker"], table.columns["id"], strict=True))


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
