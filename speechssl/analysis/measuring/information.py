"""What clusters of each layer's frames tell of phones, words and speakers."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speechssl.analysis.gather import Gathered, Rows
from speechssl.analysis.information import Information, cluster_information
from speechssl.analysis.material import Material
from speechssl.analysis.result import Better, LayerValue, Measure
from speechssl.analysis.settings import AnalysisSettings
from speechssl.errors import SpeechsslError
from speechssl.progress import progress

SOURCE = "Pasad et al. 2021, arXiv:2107.04734; clusters of other utterances than those they are measured on"
NUMBERS: tuple[tuple[str, str, Better], ...] = (
    ("share", "Mutual information of clusters and {}s, share of the {}s' entropy", "up"),
    ("nmi", "Normalised mutual information of clusters and {}s", "up"),
    ("purity", "Share of frames whose {} is their cluster's most frequent one", "up"),
)
PER_CLUSTER = 10
"""Rows that a cluster is fitted to, at least, on average."""
TOO_LARGE = 0.2
"""Share of the information that may be an artefact of few rows before it is said."""


def measure_information(
    gathered: Gathered, material: Material, settings: AnalysisSettings
) -> tuple[list[Measure], list[str]]:
    """Shares of entropy, NMI and purity, and sentences about what can't be measured."""
    measures: list[Measure] = []
    problems: list[str] = []
    sets = {
        "phone": (gathered.phones, gathered.phones.code),
        "word": (gathered.word_segments, gathered.word_segments.code),
        "speaker": (gathered.frames, speaker_codes(gathered, material)),
    }
    usable = {k: v for k, v in sets.items() if len(set(v[1][v[1] >= 0].tolist())) > 1}
    with progress("Clustering", len(usable) * len(gathered.layers), unit="layers") as advance:
        for name, (rows, codes) in usable.items():
            values: dict[str, list[LayerValue]] = {number: [] for number, _, _ in NUMBERS}
            try:
                for row, layer in enumerate(gathered.layers):
                    found = _cluster(rows, codes, row, settings)
                    for number, _, _ in NUMBERS:
                        values[number].append(_value(layer, found, number))
                    advance()
            except SpeechsslError as error:
                problems.append(f"What clusters tell of {name}s can't be measured. {error}")
                continue
            for number, title, better in NUMBERS:
                called = title.format(name, name)
                measures.append(
                    Measure(f"information/{name} {number}", called, "share", better, SOURCE, values[number])
                )
    return measures, problems


def speaker_codes(gathered: Gathered, material: Material) -> NDArray[np.int64]:
    """The speaker of each kept frame, -1 where it is not known."""
    speakers = material.values("speaker")
    number = {name: k for k, name in enumerate(sorted(set(speakers.values())))}
    of_utterance = np.array([number.get(speakers.get(i, ""), -1) for i in gathered.ids], dtype=np.int64)
    return of_utterance[gathered.frames.utterance]


def _cluster(rows: Rows, codes: NDArray[np.int64], row: int, settings: AnalysisSettings) -> Information:
    states: Tensor = rows.layer(row)
    known = np.flatnonzero(codes >= 0)
    half = np.random.default_rng(settings.seed).permutation(int(rows.utterance.max()) + 1) % 2 == 0
    fit, test = known[half[rows.utterance[known]]], known[~half[rows.utterance[known]]]
    if not len(test) or len(fit) < 2 * PER_CLUSTER:
        raise SpeechsslError("There are too few labelled utterances: label some tens of them.")
    clusters = min(settings.clusters, max(2, len(fit) // PER_CLUSTER))
    return cluster_information(
        states[torch.from_numpy(fit)], states[torch.from_numpy(test)], {"label": codes[test]}, clusters=clusters,
        generator=torch.Generator().manual_seed(settings.seed), groups=rows.utterance[test],
    )["label"]  # fmt: skip


def _value(layer: int, found: Information, number: str) -> LayerValue:
    note = found.note
    if not note and found.bits and found.chance > TOO_LARGE * found.bits:
        note = f"About {found.chance:.2f} of its {found.bits:.2f} bits are there by chance, of {found.n} rows."
    low, high = (found.low, found.high) if number == "share" else (None, None)
    return LayerValue(layer, getattr(found, number), low, high, found.n, note)
