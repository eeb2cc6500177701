"""Analyses models on a corpus: features from the cache, one pass over them for each model, then the measures."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from speechssl.analysis.aligning import align, alignable, can_align
from speechssl.analysis.gather import Gathered, gather
from speechssl.analysis.labels import (
    FIELDS,
    Labels,
    cleaned,
    label_set,
    labels_of_files,
    labels_of_manifest,
    write_labels,
)
from speechssl.analysis.material import Material, draw_utterances, make_material
from speechssl.analysis.measuring.abx import measure_abx
from speechssl.analysis.measuring.fungi import measure_fungi
from speechssl.analysis.measuring.geometry import measure_rank
from speechssl.analysis.measuring.information import measure_information
from speechssl.analysis.measuring.probes import measure_probes
from speechssl.analysis.measuring.similarity import measure_similarity
from speechssl.analysis.measuring.units import measure_units
from speechssl.analysis.models import Model
from speechssl.analysis.result import Analysis, Measure, ModelAnalysis
from speechssl.analysis.settings import AnalysisSettings
from speechssl.cache import FeatureCache
from speechssl.data.corpus import Corpus
from speechssl.errors import ManifestError, SpeechsslError
from speechssl.extraction import Precision
from speechssl.feature_store import FeatureStore
from speechssl.result import hardware, versions
from speechssl.types import Utterance
from speechssl.upstream import Upstream

logger = logging.getLogger(__name__)
DRAWN = 4
"""Models whose frames, units and attention can be drawn: what is kept of each takes memory."""
ALIGNMENT = "alignment.jsonl"
"""What the aligner found, beside the page: read again by the next analysis with this folder."""


@dataclass(frozen=True)
class Options:
    """How features are had, and where labels are from."""

    splits: tuple[str, ...] = ("test",)
    labels: tuple[str, ...] = ()
    """See `labels_of_files`; nothing = the manifest's, and where it has none an alignment of English text."""
    label_rate: float | None = None
    """How many of the labels' units of time are a second; None = they are seconds."""
    align: bool = True
    workers: int = 1
    """Processes that align; threads that read."""
    cache: FeatureCache = field(default_factory=FeatureCache)
    precision: Precision = "float32"
    skip_bad: bool = False


class _Clock:
    """Wall seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Any:
        begin = time.perf_counter()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - begin, 3)


@dataclass(frozen=True)
class Analysed:
    """What `analyse` found, and what the page draws beside its numbers."""

    analysis: Analysis
    material: Material
    gathered: dict[str, Gathered]
    """Label of a model -> what was kept of its features: of the first models, and of a run's last checkpoint."""


def analyse(
    models: Sequence[Model], corpus: Corpus, output: Path, settings: AnalysisSettings, options: Options
) -> Analysed:
    """Measures all that the labels allow and writes `analysis.json`.

    Args:
        models: the first is what the others are compared with.
        output: folder for `analysis.json` and the alignment.

    Raises:
        ManifestError: splits without utterances, or labels that can't be used.
        AudioError: a bad file, unless they are skipped.
    """
    clock = _Clock()
    with clock("labels"):
        utterances, labels = _labelled(corpus, output, settings, options)
    with clock("spectra and pitch"):
        material = make_material(utterances, labels, settings)
    work = _Work(material, settings, options, clock)
    found: list[ModelAnalysis] = []
    gathered: dict[str, Gathered] = {}
    last = {m.series: m.label for m in models if m.series}
    for model in models:
        analysed, kept = work.analyse(model, next(iter(gathered.items()), None))
        found.append(analysed)
        wanted = not gathered or not model.series or last[model.series] == model.label
        if wanted and len(gathered) < DRAWN:
            gathered[model.label] = kept
    analysis = Analysis(
        models=found,
        corpus={
            "name": corpus.name, "source": corpus.source, "fingerprint": corpus.fingerprint,
            "splits": list(options.splits), "utterances": len(material.utterances),
            "seconds": round(sum(u.duration or 0.0 for u in material.utterances), 1),
            "speakers": len(set(material.values("speaker").values())),
        },
        labels={kind: _described(labels, kind) for kind in labels.tracks if labels.of(kind)},
        warnings=material.warnings,
        settings={**asdict(settings), "measures": list(settings.measures), "precision": options.precision},
        seconds=clock.seconds,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        hardware=hardware(),
        versions=versions(),
    )  # fmt: skip
    analysis.save(output)
    return Analysed(analysis, material, gathered)


def _labelled(
    corpus: Corpus, output: Path, settings: AnalysisSettings, options: Options
) -> tuple[list[Utterance], Labels]:
    """The utterances to look at, and what is said in them."""
    pool: dict[str, Utterance] = {}
    for split in options.splits:
        pool.update((u.id, u) for u in corpus.utterances(split))
    if not pool:
        raise ManifestError(f"{corpus.root} has no utterance in {', '.join(options.splits)}: choose other splits.")
    everything = list(pool.values())
    listed = labels_of_manifest(everything, corpus.root)
    given = labels_of_files(options.labels, everything).joined(listed)
    saved = output / ALIGNMENT
    can = [] if given.of("phone") or not options.align else alignable(everything)
    scarce = list(given.of("phone")) or [u.id for u in can if saved.is_file() or can_align()]
    chosen = draw_utterances(everything, settings.utterances, labelled=scarce, seed=settings.seed)
    wanted = {u.id for u in chosen}
    labels = cleaned(_only(given, wanted), chosen, rate=options.label_rate)
    if not labels.of("phone") and can:
        labels = labels.joined(_aligned([u for u in can if u.id in wanted], saved, options))
    return chosen, labels


def _only(labels: Labels, wanted: set[str]) -> Labels:
    tracks = {k: {i: s for i, s in track.items() if i in wanted} for k, track in labels.tracks.items()}
    return replace(labels, tracks=tracks)


def _aligned(utterances: Sequence[Utterance], saved: Path, options: Options) -> Labels:
    """An alignment: what was found before, and the rest anew."""
    if not can_align() or not utterances:
        return Labels()
    known = labels_of_files([str(saved)], utterances) if _names_one_of(saved, utterances) else Labels()
    rest = [u for u in utterances if u.id not in known.of("phone")]
    fresh = align(rest, workers=options.workers)
    tracks = {k: {**known.of(k), **fresh.of(k)} for k in FIELDS}
    labels = Labels(tracks, fresh.source, fresh.warnings)
    saved.parent.mkdir(parents=True, exist_ok=True)
    write_labels(labels, saved)
    return labels


def _names_one_of(saved: Path, utterances: Sequence[Utterance]) -> bool:
    if not saved.is_file():
        return False
    text = saved.read_text(encoding="utf-8")
    return any(f'"id": "{u.id}"' in text for u in utterances)


def _described(labels: Labels, kind: str) -> str:
    track = labels.of(kind)
    spans = sum(len(s) for s in track.values())
    classes = len(label_set(track))
    return f"{labels.source.get(kind, '?')}: {spans} {kind}s, {classes} different ones, in {len(track)} utterances"


@dataclass(frozen=True)
class _Work:
    """What is the same for all models."""

    material: Material
    settings: AnalysisSettings
    options: Options
    clock: _Clock

    def analyse(self, model: Model, reference: tuple[str, Gathered] | None) -> tuple[ModelAnalysis, Gathered]:
        """One model, beside `reference`, another one's label and features."""
        upstream = model.load()
        with self.clock("features"):
            store = _features(upstream, self.material, self.options)
        try:
            with self.clock("gathering"):
                gathered = gather(store, self.material, self.settings)
            measures, problems = self._measure_all((upstream, store, gathered), reference)
        finally:
            store.close()
        warnings = [*gathered.notes, *_few(len(gathered.ids), store.hidden_size), *problems]
        for text in warnings:
            logger.warning("%s: %s", model.label, text)
        analysed = ModelAnalysis(
            model=model.label, measures=measures, num_layers=len(upstream.hidden_sizes),
            frame_rate=upstream.frame_rate, parameters=sum(p.numel() for p in upstream.parameters()),
            fingerprint=upstream.fingerprint(), weights=upstream.weights, step=model.step, series=model.series,
            warnings=warnings,
        )  # fmt: skip
        return analysed, gathered

    def _measure_all(
        self, held: tuple[Upstream, FeatureStore, Gathered], reference: tuple[str, Gathered] | None
    ) -> tuple[list[Measure], list[str]]:
        measures: list[Measure] = []
        warnings: list[str] = []
        for name in self.settings.measures:
            with self.clock(name):
                try:
                    found, problems = self._measure(name, held, reference)
                except SpeechsslError as error:
                    found, problems = [], [f"'{name}' can't be measured. {error}"]
            measures += found
            warnings += problems
        return measures, warnings

    def _measure(
        self, name: str, held: tuple[Upstream, FeatureStore, Gathered], reference: tuple[str, Gathered] | None
    ) -> tuple[list[Measure], list[str]]:
        upstream, store, gathered = held
        material, settings = self.material, self.settings
        ways: dict[str, Callable[[], tuple[list[Measure], list[str]]]] = {
            "rank": lambda: (measure_rank(gathered), []),
            "similarity": lambda: measure_similarity(gathered, material, settings, reference),
            "information": lambda: measure_information(gathered, material, settings),
            "probe": lambda: measure_probes(gathered, material, settings),
            "abx": lambda: measure_abx(store, material, settings),
            "units": lambda: measure_units(store, gathered, material, settings),
            "fungi": lambda: measure_fungi(upstream, gathered, material, settings),
        }
        return ways[name]()


def _few(utterances: int, width: int) -> list[str]:
    if utterances >= width:
        return []
    return [f"{utterances} utterances in {width} dimensions: what is told of whole utterances leans on regularisation."]


def _features(upstream: Upstream, material: Material, options: Options) -> FeatureStore:
    widths = set(upstream.hidden_sizes)
    layers = None
    if len(widths) > 1:  # the cache wants one width: that of the last layer
        layers = [k for k, size in enumerate(upstream.hidden_sizes) if size == upstream.hidden_sizes[-1]]
    return options.cache.features(
        upstream, material.utterances, layers=layers, precision=options.precision, workers=options.workers,
        skip_bad=options.skip_bad,
    )  # fmt: skip
