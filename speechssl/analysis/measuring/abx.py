"""How often a phone is nearer to another phone than to its own, by layer."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor

from speechssl.analysis.abx.items import AbxItem, Phone, Unit, make_items
from speechssl.analysis.abx.score import abx_error
from speechssl.analysis.abx.task import AbxSettings, plan_abx
from speechssl.analysis.material import Material
from speechssl.analysis.result import LayerValue, Measure
from speechssl.analysis.settings import AnalysisSettings
from speechssl.errors import SpeechsslError
from speechssl.feature_store import FeatureStore
from speechssl.progress import progress

SOURCE = "Schatz et al. 2013; items and sizes as ZeroSpeech 2021 has them, angular distance; 50 % is chance"
CONDITIONS: tuple[tuple[str, str, Unit, AbxSettings], ...] = (
    ("within", "ABX error within speakers", "triphone", AbxSettings("within", "within")),
    ("across", "ABX error across speakers", "triphone", AbxSettings("across", "within")),
    ("any", "ABX error within speakers, any context", "phoneme", AbxSettings("within", "any")),
    ("any_across", "ABX error across speakers, any context", "phoneme", AbxSettings("across", "any")),
)


class LayerFeatures(Mapping[str, Tensor]):
    """Utterance id -> (T, D) float32 of one layer, read when asked for."""

    def __init__(self, store: FeatureStore, row: int) -> None:
        self._store = store
        self._row = row

    def __getitem__(self, name: str) -> Tensor:
        return self._store.get(name)[self._row].float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.ids)

    def __len__(self) -> int:
        return len(self._store)


def measure_abx(store: FeatureStore, material: Material, settings: AnalysisSettings) -> tuple[list[Measure], list[str]]:
    """The error rate of each condition that the labels allow, and sentences about the others."""
    if not material.labels.of("phone"):
        return [], []
    measures, problems = [], []
    for name, title, unit, condition in CONDITIONS:
        items = abx_items(material, [i for i in material.labels.of("phone") if i in store], unit, settings)
        if condition.speaker == "across" and len({item.speaker for item in items}) < 2:
            continue  # said once for all, see `material.doubts`
        frames = {i: store.length(i) for i in {item.file for item in items}}
        try:
            task = plan_abx(items, frames, store.frame_rate, condition)
        except SpeechsslError as error:
            problems.append(f"{title} can't be measured. {error}")
            continue
        values = []
        with progress(title, len(task.families) * store.num_layers, unit="tables") as advance:
            for row, layer in enumerate(store.layers):
                score = abx_error(task, LayerFeatures(store, row), seed=settings.seed, advance=advance)
                low, high = (None if np.isnan(end) else end for end in (score.low, score.high))
                values.append(LayerValue(layer, score.error, low, high, score.triples))
        measures.append(Measure(f"abx/{name}", title, "share", "down", SOURCE, values))
    return measures, problems


def abx_items(material: Material, ids: Sequence[str], unit: Unit, settings: AnalysisSettings) -> list[AbxItem]:
    """Tokens of whole utterances, drawn at random until there are enough; silence is no context."""
    found: list[AbxItem] = []
    by_id = material.by_id
    for number in np.random.default_rng(settings.seed).permutation(len(ids)).tolist():
        if len(found) >= settings.abx_items:
            break
        utterance = by_id[ids[number]]
        speaker = str(utterance.labels.get("speaker") or "unknown").replace(" ", "_")
        phones = [Phone(str(s.value), s.begin, s.end) for s in material.labels.of("phone")[utterance.id]]
        found += make_items(utterance.id, speaker, phones, unit=unit)
    return found
