"""How what is said of a user's files is shown: a table for a terminal, and a page with a curve over time for each file.

Report modules are imported where they are used: a task that is only listed or trained needs none.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from downstreams.deepfake_detection.inference import probability
from speechssl.metric.calibration import Calibration

FIGURES = 50
"""Files that get a curve on a page; the table has all."""
HEADER = ["file", "verdict", "P(spoofed)", "score", "seconds", "suspicious stretches", "notes"]


def table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A row for each file.

    Args:
        found: from `inference.judge_files`, and {'error': sentence} for what can't be judged.
    """
    return HEADER, [_row(path, one) for path, one in found.items()]


def _row(path: str, one: Mapping[str, Any]) -> list[str]:
    if "error" in one:
        return [path, "not judged", "", "", "", "", str(one["error"])]
    curve = one["curve"]
    span = f"{curve[0]['start']:.1f}–{curve[-1]['end']:.1f}"
    chance = show_probability(one["probability_spoofed"])
    return [path, one["verdict"], chance, f"{one['score']:.2f}", span, stretches(one), " ".join(one["notes"])]


def stretches(one: Mapping[str, Any]) -> str:
    """'3.00–5.25 s (0.97), 8.10–9.00 s (0.71)': begin, end and mean probability; 'none'."""
    said = []
    for stretch in one["suspicious"]:
        chance = stretch["probability_spoofed"]
        tail = "" if chance is None else f" ({chance:.2f})"
        said.append(f"{stretch['start']:.2f}–{stretch['end']:.2f} s{tail}")
    return ", ".join(said) or "none"


def show_probability(value: float | None) -> str:
    """Two digits, but never a 0 or 1 that is none."""
    if value is None:
        return "unknown"
    return "< 0.01" if value < 0.01 else "> 0.99" if value > 0.99 else f"{value:.2f}"


def page(found: Mapping[str, Any]) -> Sequence[Any]:
    """One section: the table, then the curve of each file that has more than one window."""
    from speechssl.report.blocks import Cell, Section, Table

    *header, _ = HEADER
    rows = [_row(path, one) for path, one in found.items()]
    caption = (
        "Verdict: by the threshold of equal errors on dev. P(spoofed): probability of being spoofed, by a calibration "
        "fitted on dev and the prior that was set. Suspicious: stretches whose windows would not count as real, with "
        "their mean probability. Higher scores: more likely a person."
    )
    cells = [[Cell(path, notes), *(Cell(text) for text in row)] for path, *row, notes in rows]
    drawn = [(path, one) for path, one in found.items() if "error" not in one and len(one["curve"]) > 1]
    if len(drawn) > FIGURES:
        caption += f" Curves: of the first {FIGURES} of {len(drawn)} files with more than one window."
    intro = f"{len(found)} files, of which {sum('error' in one for one in found.values())} could not be judged."
    figures = [_figure(path, one) for path, one in drawn[:FIGURES]]
    judged = Table("What was judged", caption, [Cell(name) for name in header], cells)
    return [Section("files", "Files", intro, [judged, *figures])]


def _figure(path: str, one: Mapping[str, Any]) -> Any:
    from speechssl.report.blocks import Figure
    from speechssl.report.over_time import over_time_figure

    curve = one["curve"]
    known = one["probability_spoofed"] is not None
    svg = over_time_figure(
        [(point["start"], point["end"]) for point in curve],
        [point["probability_spoofed" if known else "score"] for point in curve],
        limit=_limit(one) if known else one["threshold"],
        marked=[(stretch["start"], stretch["end"]) for stretch in one["suspicious"]],
        ylabel="probability of\nbeing spoofed" if known else "score",
    )
    verdict = f"{one['verdict']}, {one['score_of']}: score {one['score']:.2f}"
    caption = (
        f"{path}: {verdict}. Dots: windows, at their middles. Dotted: where the verdict turns. Shaded: suspicious "
        f"stretches, {stretches(one)}."
    )
    return Figure(Path(path).name, caption, svg, f"{path}: {verdict}; suspicious stretches: {stretches(one)}.")


def _limit(one: Mapping[str, Any]) -> float:
    """The probability at the threshold."""
    return probability(one["threshold"], Calibration(*one["calibration"]), one["prior_spoofed"]) or 0.0
