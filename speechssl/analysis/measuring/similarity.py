"""How much of other views each layer tells: log-mel spectra, phones, words, the first layer, another model."""

import logging
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from speechssl.analysis.gather import Gathered, Rows
from speechssl.analysis.material import Material
from speechssl.analysis.result import LayerValue, Measure
from speechssl.analysis.settings import AnalysisSettings
from speechssl.analysis.similarity import cca, linear_cka, svcca
from speechssl.analysis.views import Views, one_hot
from speechssl.errors import SpeechsslError
from speechssl.progress import progress

logger = logging.getLogger(__name__)
EPSILONS = (1e-8, 1e-6, 1e-4, 1e-2)
"""Shares of a view's largest variance that are tried: all pairs of them, where the narrower view is narrow."""
PASAD = "Pasad et al. 2021, arXiv:2107.04734"
KINDS = {
    "pwcca": ("PWCCA", "Morcos et al. 2018, arXiv:1806.05759; held out, the interval is the range of the trials"),
    "svcca": ("SVCCA", "Raghu et al. 2017, arXiv:1706.05806; held out"),
    "cka": ("Linear CKA", "Kornblith et al. 2019, arXiv:1905.00414; not held out"),
}


def measure_similarity(
    gathered: Gathered, material: Material, settings: AnalysisSettings, reference: tuple[str, Gathered] | None
) -> tuple[list[Measure], list[str]]:
    """Correlations of each layer with whatever is there to be compared with, and sentences about what is not.

    Args:
        reference: another model and its features, to compare the layers of the same number with; None = there is none.
    """
    targets: dict[str, tuple[str, Rows, Tensor | Mapping[int, Tensor]]] = {}
    problems: list[str] = []
    if len(gathered.frames):
        targets["mel"] = ("log-mel spectrum", gathered.frames, _mel(gathered, material))
        targets["first"] = (f"layer {gathered.layers[0]}", gathered.frames, gathered.frames.layer(0))
    for name, title, rows in (("phone", "phones", gathered.phone_segments), ("word", "words", gathered.word_segments)):
        if len(rows) and len(rows.names) > 1:
            targets[name] = (title, rows, one_hot(rows.code.tolist(), len(rows.names)))
    if reference is not None:
        other = _other(gathered, reference[1])
        if other is not None:
            targets["model"] = (reference[0], *other)
        else:
            problems.append(f"Its layers can't be compared with those of {reference[0]}: they are not as many.")
    values: dict[tuple[str, str], list[LayerValue]] = {}
    with progress("Comparing views", len(targets) * len(gathered.layers), unit="layers") as advance:
        for name, (title, rows, target) in targets.items():
            try:
                for row, layer in enumerate(gathered.layers):
                    if name != "first" or row > 0:
                        view = target if isinstance(target, Tensor) else target[row]
                        for kind, value in _compare(layer, rows.layer(row), view, rows, settings).items():
                            values.setdefault((name, kind), []).append(value)
                    advance()
            except SpeechsslError as error:
                problems.append(f"Similarity with {title} can't be measured. {error}")
    measures = [
        Measure(f"similarity/{name} {kind}", f"{KINDS[kind][0]} with {targets[name][0]}", "", None if name in
                ("first", "model") else "up", f"{KINDS[kind][1]}; views as in {PASAD}", found)
        for (name, kind), found in values.items()
    ]  # fmt: skip
    return measures, problems


def _compare(layer: int, states: Tensor, view: Tensor, rows: Rows, settings: AnalysisSettings) -> dict[str, LayerValue]:
    views = Views(folds=settings.folds)
    for utterance in np.unique(rows.utterance):  # an utterance stays in one fold
        index = torch.from_numpy(np.flatnonzero(rows.utterance == utterance))
        views.add({"layer": states[index], "other": view[index]}, fold=int(utterance) % settings.folds)
    weighted = cca(views, "layer", "other", epsilons=EPSILONS, trials=settings.trials, seed=settings.seed)
    plain = svcca(views, "layer", "other", trials=settings.trials, seed=settings.seed)
    low, high = (weighted.low, weighted.high) if weighted.high > weighted.low else (None, None)  # one trial: no range
    return {
        "pwcca": LayerValue(layer, weighted.pwcca, low, high, weighted.n, weighted.note),
        "svcca": LayerValue(layer, plain.mean, n=plain.n, note=plain.note),
        "cka": LayerValue(layer, linear_cka(views, "layer", "other"), n=plain.n),
    }


def _mel(gathered: Gathered, material: Material) -> Tensor:
    """(N, M) of the kept frames."""
    rows = gathered.frames
    mel = np.empty((len(rows), 80), dtype=np.float32)
    for utterance in np.unique(rows.utterance):
        index = np.flatnonzero(rows.utterance == utterance)
        heard = material.acoustics[gathered.ids[utterance]]
        mel[index] = heard.at("mel", rows.place[index], gathered.frame_rate)
    return torch.from_numpy(mel)


def _other(gathered: Gathered, reference: Gathered) -> tuple[Rows, Mapping[int, Tensor]] | None:
    """The same frames of the other model, or, where its frames are others, the means of utterances; by layer."""
    if len(gathered.layers) != len(reference.layers) or gathered.ids != reference.ids:
        return None
    mine, other = gathered.frames, reference.frames
    same = gathered.frame_rate == reference.frame_rate and np.array_equal(mine.place, other.place)
    if not same or not np.array_equal(mine.utterance, other.utterance):
        mine, other = gathered.utterances, reference.utterances
    return mine, {row: other.layer(row) for row in range(len(gathered.layers))}
