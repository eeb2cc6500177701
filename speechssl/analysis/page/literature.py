"""What the literature predicts, and whether it is so here: where it is not, the page says so."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from speechssl.analysis.page.words import depth, random, written
from speechssl.analysis.result import LayerValue, Measure, ModelAnalysis
from speechssl.report.blocks import Cell, Table

UPPER_MIDDLE = (0.4, 0.95)
"""Depths at which phones are expected to be told best: above the first two fifths, below the last layer of twelve."""
EARLY = 0.5
"""Depth up to which a layer is early."""
AGAINST = "CONTRADICTS"
PHONES = ("probe/phone", "similarity/phone pwcca", "information/phone share", "abx/within", "abx/any")
SPEAKERS = ("probe/speaker", "information/speaker share")
SPECTRA = ("similarity/mel pwcca", "similarity/mel cka")


@dataclass(frozen=True)
class Finding:
    """A prediction beside what was found."""

    prediction: str
    source: str
    model: str
    measure: str
    found: str
    agrees: bool
    undecided: bool = False
    """Whether a layer where it is predicted lies within the interval of the best one."""


def findings(models: Sequence[ModelAnalysis]) -> list[Finding]:
    """All predictions that these measures can speak to."""
    trained = [m for m in models if not random(m) and m.num_layers > 2 and not m.series]
    found = []
    for model in trained:
        found += _peaks(
            model, PHONES, "Phones are told best in the upper middle layers", "Pasad et al. 2021, arXiv:2107.04734",
            lambda d: UPPER_MIDDLE[0] <= d <= UPPER_MIDDLE[1],
        )  # fmt: skip
        found += _peaks(
            model, SPEAKERS, "Speakers are told best in early layers", "Chen et al. 2022 (WavLM), arXiv:2110.13900",
            lambda d: d <= EARLY,
        )  # fmt: skip
        found += _peaks(
            model, SPECTRA, "Early layers are most like the spectrum", "Pasad et al. 2021, arXiv:2107.04734",
            lambda d: d <= EARLY,
        )  # fmt: skip
    return [*found, *_ranks(trained, [m for m in models if random(m)])]


def _peaks(
    model: ModelAnalysis, names: Sequence[str], prediction: str, source: str, fits: Callable[[float], bool]
) -> list[Finding]:
    found = []
    for name in names:
        measure = model.measure(name)
        best = None if measure is None else measure.best()
        if measure is None or best is None:
            continue
        words = f"layer {best.layer} of {model.num_layers - 1} ({written(best.value, measure.unit)})"
        fit = fits(depth(best.layer, model))
        near = not fit and _reaches(best, measure, lambda layer: fits(depth(layer, model)))
        found.append(Finding(prediction, source, model.model, measure.title, words, fit, near))
    return found


def _reaches(best: LayerValue, measure: Measure, fits: Callable[[int], bool]) -> bool:
    """Whether the value of some layer that fits is within the interval of the best one."""
    if best.low is None or best.high is None:
        return False
    return any(best.low <= v.value <= best.high for v in measure.values if fits(v.layer))


def _ranks(trained: Sequence[ModelAnalysis], untrained: Sequence[ModelAnalysis]) -> list[Finding]:
    """The last layers of each trained model beside those of random models with as many layers."""
    found = []
    for model in trained:
        for other in untrained:
            mine, theirs = model.measure("rank/rankme"), other.measure("rank/rankme")
            if mine is None or theirs is None or other.num_layers != model.num_layers:
                continue
            a, b = mine.values[-1], theirs.values[-1]
            words = f"{a.value:.1f} in its last layer, {b.value:.1f} in that of {other.model}"
            prediction = "RankMe of random weights is lower than of trained ones"
            source = "after Garrido et al. 2023, arXiv:2210.02885"
            found.append(Finding(prediction, source, model.model, mine.title, words, a.value > b.value))
    return found


def literature_table(found: Sequence[Finding]) -> Table | None:
    """A row for each prediction and measure, contradictions first."""
    if not found:
        return None
    rows = [
        [
            Cell(f.prediction, note=f"{f.measure}\n{f.source}"),
            Cell(_verdict(f), heat=0.7 if _verdict(f) == AGAINST else None), Cell(f.model), Cell(f.found),
        ]
        for f in sorted(found, key=lambda f: (f.agrees, f.undecided))
    ]  # fmt: skip
    caption = (
        "Predictions are of base-size models that were trained on hundreds of hours or more; small ones, short "
        "training and few labels may differ. Upper middle: between "
        f"{UPPER_MIDDLE[0]:.0%} and {UPPER_MIDDLE[1]:.0%} of the depth; early: its first {EARLY:.0%}. These limits are "
        "ours. Undecided: a layer where it is predicted lies within the interval of the best one."
    )
    header = [Cell(c) for c in ("Prediction", "Here", "Model", "Best layer, or values")]
    return Table("What the literature predicts", caption, header, rows)


def _verdict(finding: Finding) -> str:
    if finding.agrees:
        return "as predicted"
    return "undecided" if finding.undecided else AGAINST


def contradictions(found: Sequence[Finding]) -> list[str]:
    """A sentence for each prediction that does not hold here."""
    return [
        f"{f.model} contradicts the literature: {f.prediction[0].lower()}{f.prediction[1:]}, but by "
        f"'{f.measure}' it is {f.found}."
        for f in found
        if _verdict(f) == AGAINST
    ]
