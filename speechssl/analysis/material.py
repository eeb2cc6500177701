"""What an analysis compares features with, whatever the model: utterances, labels, spectra, pitch and energy.

M mel bands, T frames of 10 ms.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from speechssl.analysis.labels import Labels
from speechssl.analysis.settings import AnalysisSettings
from speechssl.audio import read_audio
from speechssl.errors import AudioError
from speechssl.frontend.log_mel import LogMel, LogMelConfig
from speechssl.progress import progress
from speechssl.types import Utterance

logger = logging.getLogger(__name__)
SAMPLE_RATE = 16_000  # Hz
RATE = 100.0  # Hz
FIELDS = ("speaker", "language", "gender", "tone")
"""Labels of whole utterances."""
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Acoustics:
    """What is heard, every 10 ms."""

    mel: Floats
    """(T, M) natural logarithms."""
    pitch: Floats
    """(T,) F0 in Hz, NaN where unvoiced."""
    energy: Floats
    """(T,) dB."""

    def at(self, name: str, places: NDArray[np.int64], frame_rate: float) -> Floats:
        """The mean over the 10 ms frames of each of a model's frames (N,), of 'mel', 'pitch' or 'energy'."""
        values: Floats = getattr(self, name)
        width = max(1, round(RATE / frame_rate))
        first = np.floor(places * RATE / frame_rate).astype(np.int64)
        index = np.clip(first[:, None] + np.arange(width), 0, len(values) - 1)  # (N, width)
        taken: Floats = values[index].mean(axis=1)  # NaN where part of it is unvoiced
        return taken


@dataclass(frozen=True)
class Material:
    """A corpus as analyses take it."""

    utterances: Sequence[Utterance]
    labels: Labels
    acoustics: Mapping[str, Acoustics] = field(default_factory=dict)
    """Utterance id -> what is heard, of some."""
    warnings: Sequence[str] = ()

    @cached_property
    def by_id(self) -> dict[str, Utterance]:
        """Utterance id -> utterance."""
        return {u.id: u for u in self.utterances}

    def values(self, name: str, *, fewest: int = 1) -> dict[str, str]:
        """Utterance id -> its label, of those classes that `fewest` utterances or more have."""
        found = {u.id: str(u.labels[name]) for u in self.utterances if u.labels.get(name) not in (None, "")}
        counts = Counter(found.values())
        return {i: value for i, value in found.items() if counts[value] >= fewest}


def draw_utterances(
    utterances: Sequence[Utterance], count: int | None, *, labelled: Sequence[str], seed: int
) -> list[Utterance]:
    """Some of the utterances, in their order; up to half of them among the `labelled`, whose labels are scarce."""
    if count is None or count >= len(utterances):
        return list(utterances)
    generator = np.random.default_rng(seed)
    scarce = set(labelled)
    first = [u.id for u in utterances if u.id in scarce]
    rest = [u.id for u in utterances if u.id not in scarce]
    take = min(len(first), max(count // 2, count - len(rest)))
    chosen = {*generator.permutation(first)[:take].tolist(), *generator.permutation(rest)[: count - take].tolist()}
    return [u for u in utterances if u.id in chosen]


def make_material(utterances: Sequence[Utterance], labels: Labels, settings: AnalysisSettings) -> Material:
    """Computes what is heard in some utterances, and says what can't be measured with these labels."""
    generator = np.random.default_rng(settings.seed)
    order = generator.permutation(len(utterances))[: settings.acoustic_utterances]
    acoustics = {}
    log_mel = LogMel(LogMelConfig())
    with progress("Computing spectra and pitch", len(order), unit="utterances") as advance:
        for number in sorted(order.tolist()):
            try:
                acoustics[utterances[number].id] = _acoustics(utterances[number], log_mel)
            except AudioError as error:
                logger.warning("Left out: %s", error)
            advance()
    material = Material(utterances, labels, acoustics)
    return replace(material, warnings=(*labels.warnings, *doubts(material)))


def doubts(material: Material) -> list[str]:
    """Sentences about measures that these labels do not allow."""
    found = []
    for kind in ("phone", "word"):
        if not material.labels.of(kind):
            found.append(
                f"There are no {kind} labels: what needs them is left out. Give some with `--labels`, or, of English "
                "text, install 'speechssl[analysis]'."
            )
    for name in FIELDS:
        classes = set(material.values(name).values())
        if len(classes) == 1 and name in ("speaker", "language"):
            found.append(
                f"All utterances have one {name} ('{next(iter(classes))}'): nothing can be said about {name}s."
            )
        elif not classes and name in ("speaker", "language"):
            found.append(f"No utterance has a '{name}' in the corpus's manifest: what needs it is left out.")
    voices = {str(material.by_id[i].labels.get("speaker")) for i in material.labels.of("phone") if i in material.by_id}
    if len(voices) == 1:
        found.append(
            f"All phones are labelled in the speech of one speaker ('{voices.pop()}'): phones and this voice can't be "
            "told apart, and ABX across speakers is left out."
        )
    return found


def _acoustics(utterance: Utterance, log_mel: LogMel) -> Acoustics:
    from speechssl.report.audio import fundamental_frequency

    waveform = read_audio(utterance.path, sample_rate=SAMPLE_RATE, start=utterance.start, duration=utterance.duration)
    if len(waveform) < SAMPLE_RATE // 10:
        raise AudioError(f"{utterance.path} is shorter than 0.1 s: leave it out.")
    with torch.inference_mode():
        mel = log_mel(waveform[None] * 32768.0)[0].numpy()  # (T, M), of 16-bit samples as Kaldi has it
    pitch = fundamental_frequency(waveform.numpy()).astype(np.float32)[: len(mel)]
    pitch = np.pad(pitch, (0, len(mel) - len(pitch)), constant_values=np.nan)
    hop = SAMPLE_RATE // int(RATE)
    blocks = waveform[: len(waveform) // hop * hop].reshape(-1, hop).square().mean(dim=1)  # (T or more,)
    energy = (10 * torch.log10(blocks.clamp(min=1e-10))).numpy()[: len(mel)]
    return Acoustics(mel, pitch, np.pad(energy, (0, len(mel) - len(energy)), mode="edge"))
