"""What trivial cues alone would score as detectors, so that a reader sees what a system may have won by.

A task says so in the breakdown `words.CUES`: '<cue>' or '<cue>: <which way it points>' -> its rate. It is about the
data, so all systems that were trained on one set share it.
"""

from collections.abc import Sequence

from speechssl.report.blocks import Cell, Table
from speechssl.report.summary import Group, Summary, summarise
from speechssl.report.table import EMPTY
from speechssl.report.words import CUES, capital, format_count, format_value
from speechssl.result import MetricValue, RunResult


def cues_table(groups: Sequence[Group]) -> Table | None:
    """Cue × set, with bars; None where no run of the task says anything of cues."""
    told = [r for g in groups for r in g.results if CUES in r.test.breakdown]
    if not told:
        return None
    sets: list[list[RunResult]] = []
    for result in told:
        same = next((s for s in sets if _rates(s[0]) == _rates(result)), None)
        if same is None:
            sets.append([result])
        else:
            same.append(result)
    labels = [_label(s, len(sets)) for s in sets]
    names = list(dict.fromkeys(name for s in sets for name in s[0].test.breakdown[CUES]))
    rows = []
    for name in names:
        cue, _, way = name.partition(": ")
        values = [s[0].test.breakdown[CUES].get(name) for s in sets]
        rows.append([Cell(capital(cue)), Cell(way or "–"), *(_cell(value) for value in values)])
    caption = (
        "The equal error rate that each cue would have alone on the test split, in the direction that the training "
        "split gives it. Bars: how much it gives away, nothing near 50 %, where a system can’t win by it. "
        "Above 50 % the cue points the other way on test. Combinations were learned on the training split."
    )
    return Table("EER of trivial cues", caption, [Cell("Trivial cue"), Cell("On train"), *labels], rows)


def _rates(result: RunResult) -> dict[str, float]:
    return {name: value.value for name, value in result.test.breakdown[CUES].items()}


def _label(results: Sequence[RunResult], sets: int) -> Cell:
    if sets == 1:
        return Cell("Every upstream")
    names = list(dict.fromkeys(r.upstream.label for r in results))
    return Cell(names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more")


def _cell(value: MetricValue | None) -> Cell:
    summary: Summary | None = None if value is None else summarise([value])
    if summary is None:
        return EMPTY
    note = f"n = {format_count(summary.n)}"
    return Cell(format_value(summary.mean, "eer"), note, bar=min(1.0, 2 * abs(0.5 - summary.mean)))
