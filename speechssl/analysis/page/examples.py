"""Chosen utterances: what is heard, where units change, and what each layer attends to."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from speechssl.analysis.attention import attention_weights
from speechssl.analysis.gather import Gathered
from speechssl.analysis.information import fit_clusters
from speechssl.analysis.material import Material
from speechssl.analysis.models import Model
from speechssl.analysis.page.maps import best_layer
from speechssl.analysis.page.plots import attention_maps, units_figure
from speechssl.analysis.result import ModelAnalysis
from speechssl.audio import read_audio
from speechssl.data.spans import SLACK
from speechssl.errors import AudioError, SpeechsslError
from speechssl.extraction import extract
from speechssl.report.audio import SAMPLE_RATE, load_clip, log_mel
from speechssl.report.blocks import Block, Example, Figure, Listen, Player
from speechssl.types import Utterance

SHORTEST, LONGEST = 1.2, 5.0
"""Seconds; what lies between can be read in a figure."""
ENOUGH = 12
"""Phones that an example has, where one has so many."""
MAPS = 4
"""Layers whose attention is drawn."""
Floats = NDArray[np.float64]


def choose_examples(material: Material, count: int) -> list[Utterance]:
    """Utterances of a readable length, with phones where there are some, of different speakers."""
    phones = material.labels.of("phone")
    fit = [u for u in material.utterances if SHORTEST <= (u.duration or 0.0) <= LONGEST]
    ordered = sorted(fit, key=lambda u: (-min(len(phones.get(u.id, ())), ENOUGH), u.id))
    chosen: list[Utterance] = []
    for first_of_speaker in (True, False):
        for utterance in ordered:
            heard = utterance.labels.get("speaker") in {u.labels.get("speaker") for u in chosen}
            if len(chosen) < count and utterance not in chosen and not (first_of_speaker and heard):
                chosen.append(utterance)
    return chosen


def example_blocks(
    chosen: Sequence[Utterance],
    models: Sequence[tuple[Model, ModelAnalysis, Gathered]],
    material: Material,
    colours: Mapping[str, int],
    *,
    clusters: int,
    seed: int,
) -> tuple[list[Block], list[str]]:
    """Figures of each utterance, and sentences about what could not be drawn."""
    edges: dict[str, dict[str, tuple[int, Floats]]] = {u.id: {} for u in chosen}
    attention: dict[str, list[Figure]] = {u.id: [] for u in chosen}
    problems: list[str] = []
    for model, analysis, gathered in models:
        upstream = model.load()
        layer = best_layer(analysis, gathered)
        rows = gathered.phones if len(gathered.phones) >= 20 * clusters else gathered.frames
        kmeans = None
        if len(rows) >= 10:
            states = rows.layer(list(gathered.layers).index(layer))
            most = min(clusters, len(states) // 10)
            kmeans = fit_clusters(states, max(most, 1), generator=torch.Generator().manual_seed(seed))
        for utterance, found in extract(upstream, chosen, layers=[layer]):
            if kmeans is not None:
                codes = kmeans.assign(found[layer].float()).numpy()
                changes = np.flatnonzero(np.diff(codes)) + 1
                label = f"{model.label}, layer {layer}"
                edges[utterance.id][label] = (colours[model.label], changes / upstream.frame_rate)
            try:
                waveform = _waveform(utterance, upstream.sample_rate)
                figure = _attention(
                    model.label, utterance, attention_weights(upstream, waveform), len(waveform) / upstream.sample_rate
                )
            except SpeechsslError as error:
                problems.append(f"The attention of {model.label} is not drawn. {error}")
                continue
            if figure is not None:
                attention[utterance.id].append(figure)
    blocks: list[Block] = []
    for utterance in chosen:
        blocks += [*_audio(utterance), _units(utterance, material, edges[utterance.id]), *attention[utterance.id]]
    return blocks, list(dict.fromkeys(problems))


def _waveform(utterance: Utterance, sample_rate: int) -> torch.Tensor:
    return read_audio(utterance.path, sample_rate=sample_rate, start=utterance.start, duration=utterance.duration)


def _audio(utterance: Utterance) -> list[Block]:
    """A player, where the utterance is a file of its own."""
    try:
        clip = load_clip(Path(utterance.path))
    except AudioError:  # a member of an archive, say, or no encoder: the figures stand alone
        return []
    if utterance.start or abs(clip.seconds - (utterance.duration or clip.seconds)) > SLACK:
        return []
    texts = [("Text", str(utterance.labels["text"]))] if utterance.labels.get("text") else []
    player = Player(str(utterance.labels.get("speaker") or "unknown speaker"), clip.uri, clip.seconds)
    return [Listen("What is drawn below.", [Example(utterance.id, texts, [player])])]


def _units(utterance: Utterance, material: Material, units: Mapping[str, tuple[int, Floats]]) -> Figure:
    waveform = _waveform(utterance, SAMPLE_RATE).numpy()
    seconds = len(waveform) / SAMPLE_RATE
    phones = material.labels.of("phone").get(utterance.id, ())
    svg = units_figure(log_mel(waveform), phones, units, seconds=seconds)
    text = str(utterance.labels.get("text") or "not transcribed")
    counts = "; ".join(f"{len(e) + 1} by {label}" for label, (_, e) in units.items())
    rates = f" Runs of one unit: {counts}." if counts else ""
    lines = ", white lines: where phones begin" if phones else ""
    caption = (
        f"“{text}”, {utterance.labels.get('speaker') or 'unknown speaker'}, {seconds:.1f} s. Above: log-mel "
        f"spectrum{lines}. Below, for each model: runs of one k-means unit, dark and light by turns.{rates}"
    )
    return Figure(f"Units of ‘{utterance.id}’", caption, svg, f"Spectrogram with units: {caption}", wide=True)


def _attention(
    label: str, utterance: Utterance, weights: Mapping[int, NDArray[np.float32]], seconds: float
) -> Figure | None:
    if not weights:
        return None
    layers = list(weights)
    chosen = sorted({layers[round(k * (len(layers) - 1) / (MAPS - 1))] for k in range(MAPS)})
    svg = attention_maps([(f"layer {k}", weights[k]) for k in chosen], seconds=seconds)
    caption = (
        "Which frames (to the right) each frame (downwards) takes its values from, mean over the heads; brighter is "
        "more, on the scale of the square root. A diagonal means neighbours, vertical lines frames that all attend to."
    )
    title = f"Attention of {label} in ‘{utterance.id}’"
    return Figure(title, caption, svg, f"{title}: maps of layers {', '.join(map(str, chosen))}.", wide=True)
