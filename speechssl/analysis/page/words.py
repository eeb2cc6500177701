"""How the page writes numbers, layers and sections."""

import math
from collections.abc import Sequence

from speechssl.analysis.result import LayerValue, Measure, ModelAnalysis
from speechssl.report.words import format_number

SECTIONS = {
    "rank": (
        "Rank",
        "How many directions the frames of a layer take up. A model that collapses uses ever fewer; one that uses many "
        "has room for what later heads need, without saying what that is.",
    ),
    "similarity": (
        "Similarity",
        "How much of another view of the same frames a layer tells by a linear map, in utterances that the map was not "
        "fitted to. Spectra are one number per mel band; phones and words are one column per class, of the means over "
        "their spans.",
    ),
    "information": (
        "Information",
        "What the k-means cluster of a frame tells of its label, in utterances that the clusters were not fitted to.",
    ),
    "probe": (
        "Probes",
        "What small regularised classifiers and regressions read from one layer. Selectivity is by how much they do "
        "better than on control labels, dealt at random: a probe that learns those too says more of itself than of the "
        "layer.",
    ),
    "abx": (
        "ABX",
        "How often a token of one phone is nearer to a token of another phone than to a token of its own. Nothing is "
        "learned.",
    ),
    "units": (
        "Units",
        "What the k-means clusters of a layer are like as discrete units, each run of equal ones taken as one.",
    ),
    "fungi": (
        "Gradients",
        "Whether gradients of self-supervised losses, appended to the mean of the last layer, help nearest neighbours.",
    ),
}
"""Section -> its title and what it shows, in the order of the page."""


def section_of(measure: Measure) -> str:
    """The section that a measure belongs to."""
    return measure.name.split("/", maxsplit=1)[0]


def written(value: float | None, unit: str, *, like: float | None = None) -> str:
    """The value in its unit: '71.2 %' of shares, three digits else."""
    if value is None or not math.isfinite(value):
        return "–"
    if unit == "share":
        return f"{100 * value:.1f} %".replace("-", "−")
    return format_number(value, like=like) + (f" {unit}" if unit else "")


def interval(value: LayerValue, unit: str) -> str:
    """'[70.1 %, 72.3 %]', or nothing."""
    if value.low is None or value.high is None:
        return ""
    unit = unit if unit == "share" else ""
    return f"[{written(value.low, unit, like=value.value)}, {written(value.high, unit, like=value.value)}]"


def names_of(models: Sequence[ModelAnalysis]) -> list[str]:
    """The measures of all models, in the order of the sections and then of the first model that has them."""
    names = dict.fromkeys(m.name for model in models for m in model.measures)
    return sorted(names, key=lambda n: list(SECTIONS).index(n.split("/")[0]) if n.split("/")[0] in SECTIONS else 99)


def random(model: ModelAnalysis) -> bool:
    """Whether its weights were never trained."""
    return model.weights.startswith("random")


def depth(layer: int, model: ModelAnalysis) -> float:
    """Where a layer stands: 0 = what enters the first block, 1 = the last output."""
    return layer / max(model.num_layers - 1, 1)
