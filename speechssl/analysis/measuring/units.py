"""What the k-means clusters of each layer are like as discrete units."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from speechssl.analysis.gather import Gathered
from speechssl.analysis.information import fit_clusters
from speechssl.analysis.material import Material
from speechssl.analysis.result import Better, LayerValue, Measure
from speechssl.analysis.settings import AnalysisSettings
from speechssl.analysis.token_knn import knn_evaluate
from speechssl.analysis.units import UnitStatistics, sequences, unit_edit_distance, unit_statistics
from speechssl.errors import SpeechsslError
from speechssl.feature_store import FeatureStore
from speechssl.progress import progress

DUNBAR = "Dunbar et al. 2019, sec. 2.3, arXiv:1904.11469"
STATISTICS: tuple[tuple[str, str, str, Better, str, Callable[[UnitStatistics], float]], ...] = (
    ("bitrate", "Bitrate of the units of all frames", "bit/s", None, DUNBAR, lambda s: s.bitrate),
    ("segment bitrate", "Bitrate of units, one per run", "bit/s", None, DUNBAR, lambda s: s.segment_bitrate),
    ("perplexity", "Perplexity of the units", "", None, "2 to the entropy: units in even use", lambda s: s.perplexity),
    ("used", "Units in use", "share", "up", "of all clusters", lambda s: s.used),
    ("run", "Mean length of a run of one unit", "s", None, "frames over runs", lambda s: s.seconds / s.runs),
)
VOTERS = 150
"""Utterances whose unit sequences are compared with each other."""
NEIGHBOURS = 5
FEWEST = 6
"""Utterances of a language that counts."""
DISTANCE = "edits between the units of one text by two speakers, over the longer one; after Gat et al. 2022"


def measure_units(
    store: FeatureStore, gathered: Gathered, material: Material, settings: AnalysisSettings
) -> tuple[list[Measure], list[str]]:
    """Statistics of units by layer, and sentences about what can't be measured."""
    ids = [i for i in gathered.ids if i in material.acoustics]
    rows = gathered.frames
    clusters = min(settings.clusters, len(rows) // 10)
    if clusters < 2:
        return [], [f"{len(rows)} frames are too few for units: take more utterances."]
    values: dict[str, list[LayerValue]] = {name: [] for name, *_ in STATISTICS}
    distances: list[LayerValue] = []
    problems: list[str] = []
    spoken = _spoken(ids, material)
    named: dict[int, dict[str, Tensor]] = {}
    with progress("Measuring units", len(gathered.layers), unit="layers") as advance:
        for row, layer in enumerate(gathered.layers):
            generator = torch.Generator().manual_seed(settings.seed)
            kmeans = fit_clusters(rows.layer(row), clusters, generator=generator)
            codes: dict[str, Tensor] = {i: kmeans.assign(store.get(i)[row].float()) for i in ids}
            found = unit_statistics(codes, frame_rate=gathered.frame_rate, entries=clusters)
            named[layer] = {i: codes[i] for i in ids[:VOTERS]}
            for name, *_, number in STATISTICS:
                values[name].append(LayerValue(layer, number(found), n=found.frames))
            if spoken is not None and not problems:
                try:
                    distances.append(_distance(layer, codes, spoken, settings.seed))
                except SpeechsslError as error:
                    problems.append(f"The edit distance of units can't be measured. {error}")
            advance()
    fitted = f"k-means of {clusters} clusters on {len(rows)} frames"
    measures = [
        Measure(f"units/{name}", title, unit, better, f"{source}; {fitted}", values[name])
        for name, title, unit, better, source, _ in STATISTICS
    ]
    measures += _neighbours(named, gathered, material, settings)
    if distances:
        source = f"{DISTANCE}; {fitted}"
        title = "Edit distance of units between speakers"
        measures.append(Measure("units/speaker distance", title, "share", "down", source, distances))
    return measures, problems


def _neighbours(
    codes: dict[int, dict[str, Tensor]], gathered: Gathered, material: Material, settings: AnalysisSettings
) -> list[Measure]:
    """How often the nearest unit sequences of other speakers, or of other utterances, are in the same language."""
    languages = material.values("language", fewest=FEWEST)
    ids = [i for i in next(iter(codes.values())) if i in languages]
    if len({languages[i] for i in ids}) < 2:
        return []
    values = []
    for layer in gathered.layers:
        units = list(sequences({i: codes[layer][i] for i in ids}).values())
        found = knn_evaluate(units, [languages[i] for i in ids], k=NEIGHBOURS, seed=settings.seed)
        values.append(LayerValue(layer, found.accuracy.value, found.accuracy.low, found.accuracy.high, len(ids)))
    source = f"vote of the {NEIGHBOURS} unit sequences with the smallest edit distance; voices are not kept apart"
    return [Measure("units/knn language", "Language by the nearest unit sequences", "share", "up", source, values)]


def _spoken(ids: Sequence[str], material: Material) -> tuple[dict[str, str], dict[str, str]] | None:
    """The texts and speakers of those of which both are known; None where no text is said by two speakers."""
    own = [material.by_id[i] for i in ids]
    known = [u for u in own if u.labels.get("text") and u.labels.get("speaker")]
    texts = {u.id: f"{u.labels.get('language', '')} {u.labels['text']} {u.labels.get('tone', '')}" for u in known}
    speakers = {u.id: str(u.labels["speaker"]) for u in known}
    heard: dict[str, set[str]] = {}
    for name, text in texts.items():
        heard.setdefault(text, set()).add(speakers[name])
    return (texts, speakers) if any(len(s) > 1 for s in heard.values()) else None


def _distance(
    layer: int, codes: dict[str, Tensor], spoken: tuple[dict[str, str], dict[str, str]], seed: int
) -> LayerValue:
    found = unit_edit_distance(codes, *spoken, seed=seed)
    note = f"Of different texts it is {100 * found.control:.0f} % in layer {layer}."
    return LayerValue(layer, found.distance, found.low, found.high, found.pairs, note)
