"""Score files joined to a protocol: which score is of which trial, and what is said where that fails."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from downstreams.deepfake_detection.score_table import SPOOF, Table
from downstreams.deepfake_detection.score_text import Texts
from speechssl.errors import ConfigError, ManifestError, nearest

Mask = NDArray[np.bool_]


def check_duplicates(table: Table, names: Texts) -> None:
    """Sees that no name occurs twice.

    Raises:
        ManifestError: one does.
    """
    twice = names.duplicates()
    if twice:
        row, first = twice[0]
        raise ManifestError(
            f"{table.where(row)} names {names[row]} again, which line {table.lines[first]} has, the first of "
            f"{len(twice)} duplicates: a trial is judged once, so remove them."
        )


def chosen_by(settings: Mapping[str, str], truth: Table, notes: list[str]) -> Mask:
    """The trials that `where` keeps, all its conditions being met."""
    kept = np.ones(len(truth), dtype=bool)
    for condition in filter(None, settings.get("where", "").split(",")):
        name, _, value = condition.partition("=")
        if not value or name not in truth.columns:
            raise ConfigError(
                f"`where` must be COLUMN=VALUE with a column of {truth.path} ({', '.join(sorted(truth.columns))}), but "
                f"is '{condition}'.{nearest(name, truth.columns)}"
            )
        chosen = truth.columns[name].equal(value)
        if not chosen.any():
            known = truth.columns[name].counted[0]
            raise ConfigError(f"No line of {truth.path} has the {name} '{value}'.{nearest(value, known)}")
        kept &= chosen
    if not kept.all():
        notes.append(f"{int(kept.sum())} of {kept.size} trials are those where {settings['where']}.")
    return kept


def join(  # noqa: PLR0917  a join is two tables, and what is said about it
    table: Table,
    names: Texts,
    truth: Table,
    known: Texts,
    kept: Mask,
    settings: Mapping[str, str],
    notes: list[str],
) -> NDArray[np.intp]:
    """(N,) the row of each trial in the scores, -1 = none.

    Args:
        names: of the scores, as `known` has those of the trials.
        kept: (N,) the trials that need a score.

    Raises:
        ManifestError: trials without score or scores without trial, unless `unmatched` is 'drop'; duplicates.
    """
    check_duplicates(table, names)
    places = known.find(names)
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
    ours, theirs = truth.marked("label", SPOOF), table.marked("label", SPOOF)
    wrong = np.flatnonzero((rows >= 0) & (ours != theirs[rows]))
    if wrong.size:
        row = int(wrong[0])
        label, other = truth.columns["label"][row], table.columns["label"][rows[row]]
        raise ManifestError(
            f"{table.where(rows[row])} calls {truth.columns['id'][row]} '{other}', but line {truth.lines[row]} of "
            f"{truth.path} '{label}', the first of {wrong.size} contradictions: give files of one set of trials."
        )
