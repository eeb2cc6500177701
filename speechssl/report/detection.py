"""DET curves and the confusion of attacks, from the score files that detection tasks leave.

A score file is tab-separated with a header; the columns `score` and `label` are needed, `attack` is used where present.
Higher scores mean more target-like (same speaker, real speech).
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechssl.errors import SpeechsslError
from speechssl.metric.detection import detection_error_tradeoff, equal_error_rate
from speechssl.report.blocks import Cell, Figure, Table
from speechssl.report.collect import Run
from speechssl.report.plots import det_figure
from speechssl.report.summary import Group, Summary, summarise
from speechssl.report.table import heat_cells
from speechssl.report.words import format_value, join_words
from speechssl.result import MetricValue

Floats = NDArray[np.float64]
TARGET = frozenset({"1", "1.0", "true", "target", "same", "bonafide", "bona-fide", "real", "genuine", "human"})
NONTARGET = frozenset(
    {"0", "0.0", "false", "nontarget", "non-target", "different", "spoof", "spoofed", "fake", "impostor", "imposter"}
)


@dataclass(frozen=True)
class Scores:
    """The trials of one run."""

    scores: Floats
    """(N,)"""
    target: NDArray[np.bool_]
    """(N,) True = same speaker, real speech."""
    attacks: Sequence[str] | None
    """(N,) names of attacks; None where the file has no such column."""


def read_scores(path: Path) -> Scores:
    """Reads a score file.

    Raises:
        SpeechsslError: missing, without the needed columns, or with a label or score that is none.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpeechsslError(f"The scores {path} can't be read ({error}): their curve is left out.") from error
    if not rows or not {"score", "label"} <= set(rows[0]):
        raise SpeechsslError(f"{path} has no rows with the columns 'score' and 'label': its curve is left out.")
    labels = [str(r["label"]).strip().lower() for r in rows]
    unknown = sorted(set(labels) - TARGET - NONTARGET)
    if unknown:
        raise SpeechsslError(f"{path} has the label '{unknown[0]}', which is neither target nor non-target.")
    try:
        scores = np.array([float(r["score"]) for r in rows])
    except (TypeError, ValueError) as error:
        raise SpeechsslError(f"{path} has a score that is no number ({error}): its curve is left out.") from error
    attacks = [str(r["attack"]) for r in rows] if "attack" in rows[0] else None
    return Scores(scores, np.array([label in TARGET for label in labels]), attacks)


def group_scores(groups: Sequence[Group], runs: Sequence[Run], problems: list[str]) -> dict[str, list[Scores]]:
    """Label -> the scores of each seed, for the upstreams of one task that left a score file."""
    folders = {id(run.result): run.folder for run in runs}
    found: dict[str, list[Scores]] = {}
    for group in groups:
        for result in group.results:
            name = _score_file(result.test.files)
            if name is None:
                continue
            try:
                scores = read_scores(folders[id(result)] / name)
                equal_error_rate(scores.scores[scores.target], scores.scores[~scores.target])
            except SpeechsslError as error:
                problems.append(str(error))
                continue
            found.setdefault(group.label, []).append(scores)
    return found


def _score_file(files: Mapping[str, str]) -> str | None:
    if "scores" in files:
        return files["scores"]
    return next((f for kind, f in files.items() if "score" in kind and f.endswith(".tsv")), None)


def det_block(scores: Mapping[str, Sequence[Scores]], colours: Mapping[str, int]) -> Figure:
    """The DET curves of one task."""
    series = {label: (colours[label], [_det(s) for s in found]) for label, found in scores.items()}
    rates = [f"{label} crosses the diagonal at {format_value(_eer(found), 'eer')}" for label, found in scores.items()]
    caption = (
        "Detection error tradeoff over all test trials, one line per seed, on normal-deviate axes: for each threshold, "
        "the share of targets missed against the share of non-targets accepted. Closer to the lower left corner is "
        "better; a curve crosses the dotted diagonal at its equal error rate. Curves end where the trials get too few."
    )
    return Figure("DET curves", caption, det_figure(series), f"DET curves: {join_words(rates)}.")


def _det(scores: Scores) -> tuple[Floats, Floats]:
    curve = detection_error_tradeoff(scores.scores[scores.target], scores.scores[~scores.target])
    inside = (curve.miss > 0) & (curve.miss < 1) & (curve.false_alarm > 0) & (curve.false_alarm < 1)
    if inside.sum() > 1:
        return curve.miss[inside], curve.false_alarm[inside]
    # A system that makes no error has no finite normal deviate: half an error instead.
    miss = np.clip(curve.miss, 0.5 / scores.target.sum(), 1 - 0.5 / scores.target.sum())
    alarm = np.clip(curve.false_alarm, 0.5 / (~scores.target).sum(), 1 - 0.5 / (~scores.target).sum())
    return miss, alarm


def _eer(found: Sequence[Scores]) -> float:
    return float(np.mean([equal_error_rate(s.scores[s.target], s.scores[~s.target])[0] for s in found]))


def confusion_table(scores: Mapping[str, Sequence[Scores]]) -> Table | None:
    """How often each attack passes for real, and real speech for an attack, at each system's own threshold.

    None where no score file names attacks.
    """
    rates = {label: [r for s in found if (r := _confusions(s))] for label, found in scores.items()}
    rates = {label: found for label, found in rates.items() if found}
    names = sorted({name for found in rates.values() for r in found for name in r}, key=lambda n: (n != REAL, n))
    if not names:
        return None
    cells: dict[str, list[Summary | None]] = {
        name: [summarise([r[name] for r in found if name in r]) for found in rates.values()] for name in names
    }
    largest = max(s.mean for row in cells.values() for s in row if s is not None)
    rows = [[Cell(name, _trials(row)), *heat_cells(row, "error rate", largest)] for name, row in cells.items()]
    caption = (
        "Decisions at the threshold of each system’s equal error rate over all test trials. First row: real speech "
        "taken for an attack; other rows: speech of that attack taken for real. Lower is better; stronger "
        "shading: more confusion."
    )
    header = [Cell("True class"), *(Cell(label) for label in rates)]
    return Table("Confusion of attacks", caption, header, rows)


REAL = "real speech"


def _trials(row: Sequence[Summary | None]) -> str:
    return f"n = {max(s.n for s in row if s is not None)}"


def _confusions(scores: Scores) -> dict[str, MetricValue]:
    """Class -> share decided wrongly; empty where the attacks are not named."""
    if scores.attacks is None:
        return {}
    threshold = equal_error_rate(scores.scores[scores.target], scores.scores[~scores.target])[1]
    accepted = scores.scores > threshold
    attacks = np.array(scores.attacks)
    missed = ~accepted[scores.target]
    found = {REAL: MetricValue(float(missed.mean()), missed.size)}
    for name in sorted(set(attacks[~scores.target])):
        passed = accepted[~scores.target & (attacks == name)]
        found[str(name)] = MetricValue(float(passed.mean()), passed.size)
    return found
