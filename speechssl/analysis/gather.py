"""Gathers from cached features, in one pass over them, what measures look at: memory is that of a sample.

U utterances, K layers, T frames, D width, N frames or segments that are kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speechssl.analysis.labels import Tracks, frame_codes, label_set
from speechssl.analysis.material import Material
from speechssl.analysis.rank import Geometry, GeometryMeter, decorrelation_gap, sample_frames
from speechssl.analysis.settings import AnalysisSettings
from speechssl.data.spans import Span, first_frames
from speechssl.feature_store import FeatureStore
from speechssl.progress import progress

Integers = NDArray[np.int64]
RARE = 20
"""Phones with fewer spans are no class: they could not be learned."""
NEIGHBOURS = 30
"""Utterances that tell how fast frames change."""


@dataclass(frozen=True)
class Rows:
    """Frames, segments or utterances of all layers."""

    states: Tensor
    """(N, K, D) bfloat16, as the cache has them; means are float32."""
    utterance: Integers
    """(N,) which utterance each is of, counted in `Gathered.ids`."""
    place: Integers
    """(N,) which frame of it; of segments their middle, of utterances 0."""
    code: Integers
    """(N,) its class, counted in `names`; -1 = none."""
    names: Sequence[str]
    length: NDArray[np.float64]
    """(N,) seconds that each spans."""

    def __len__(self) -> int:
        return len(self.states)

    def layer(self, row: int) -> Tensor:
        """(N, D) float32 of one layer, counted among those held."""
        return self.states[:, row].float()

    def take(self, index: Integers) -> "Rows":
        """Some of them."""
        parts = (self.utterance[index], self.place[index], self.code[index])
        return Rows(self.states[torch.from_numpy(index)], *parts, self.names, self.length[index])


@dataclass(frozen=True)
class Gathered:
    """What is kept of one model's features."""

    ids: Sequence[str]
    layers: Sequence[int]
    frame_rate: float
    """Hz."""
    geometry: Sequence[Geometry | None]
    """Of each layer; None where there are fewer than two frames."""
    memory: Sequence[float]
    """Seconds after which frames of an utterance are decorrelated, of each layer."""
    utterances: Rows
    """Means over the frames of each utterance."""
    frames: Rows
    """Of any utterances that acoustics are known of; no classes."""
    phones: Rows
    """Frames with phones."""
    phone_segments: Rows
    """Means over the frames of each phone."""
    word_segments: Rows
    notes: Sequence[str] = ()


@dataclass
class _Kept:
    """Rows as they come."""

    names: Sequence[str]
    frame_rate: float

    def __post_init__(self) -> None:
        self.states: list[Tensor] = []
        self.columns: list[tuple[Integers, Integers, Integers, NDArray[np.float64]]] = []

    def add_frames(self, states: Tensor, utterance: int, places: Integers, codes: Integers | None) -> None:
        """Some frames of (K, T, D); where there are `codes` of the T frames, those that have one."""
        if codes is not None:
            places = places[codes[places] >= 0]
        own = np.full(len(places), -1, dtype=np.int64) if codes is None else codes[places]
        taken = states[:, torch.from_numpy(places)].transpose(0, 1).to(torch.bfloat16)  # (N, K, D)
        self._add(taken, utterance, places, own, np.full(len(places), 1 / self.frame_rate))

    def add_segments(self, states: Tensor, utterance: int, spans: Sequence[Span], number: Mapping[str, int]) -> None:
        """Means over the frames whose centres lie in each span; a span that holds none has the nearest frame."""
        frames, rate = states.size(1), self.frame_rate
        rows, places = [], []
        for span in spans:
            begin, end = first_frames(np.array([span.begin, span.end]), rate).tolist()
            first = min(begin, frames - 1)
            last = min(max(end, first + 1), frames)
            rows.append(states[:, first:last].float().mean(dim=1).to(torch.bfloat16))
            places.append((first + last) // 2)
        if rows:
            own = np.array([number[s.value] for s in spans], dtype=np.int64)
            seconds = np.array([s.end - s.begin for s in spans], dtype=np.float64)
            self._add(torch.stack(rows), utterance, np.array(places, dtype=np.int64), own, seconds)

    def _add(
        self, states: Tensor, utterance: int, place: Integers, code: Integers, length: NDArray[np.float64]
    ) -> None:
        if len(states):
            self.states.append(states)
            self.columns.append((np.full(len(place), utterance, dtype=np.int64), place, code, length))

    def finish(self, layers: int, width: int) -> Rows:
        """All of them together."""
        if not self.states:
            none = np.zeros(0, dtype=np.int64)
            empty = torch.zeros(0, layers, width, dtype=torch.bfloat16)
            return Rows(empty, none, none, none, self.names, np.zeros(0))
        utterance, place, code, length = (np.concatenate(c) for c in zip(*self.columns, strict=True))
        return Rows(torch.cat(self.states), utterance, place, code, self.names, length)


def gather(store: FeatureStore, material: Material, settings: AnalysisSettings) -> Gathered:
    """Reads each utterance's features once."""
    ids = [u.id for u in material.utterances if u.id in store]
    lengths = [store.length(i) for i in ids]
    layers, width, rate = store.num_layers, store.hidden_size, store.frame_rate
    held, notes = _how_many(settings, layers, width, len(ids))
    generator = torch.Generator().manual_seed(settings.seed)
    gap = max(1, round(settings.gap * rate))
    ranked = sample_frames(lengths, generator=generator, total=settings.rank_frames, gap=gap)
    acoustic = [length if i in material.acoustics else 0 for i, length in zip(ids, lengths, strict=True)]
    anywhere = sample_frames(acoustic, generator=generator, total=held)
    phones = _Codes(material.labels.of("phone"), fewest=RARE)
    words = _Codes(material.labels.of("word"), most=settings.words)
    labelled = sample_frames(
        [length if i in phones.track else 0 for i, length in zip(ids, lengths, strict=True)],
        generator=generator, total=2 * held,
    )  # fmt: skip
    meters = [GeometryMeter() for _ in range(layers)]
    means = torch.zeros(len(ids), layers, width)
    names = {"frames": [], "phones": phones.names, "p": phones.names, "w": words.names}
    kept = {n: _Kept(c, rate) for n, c in names.items()}
    shares = {n: min(1.0, held / max(c.total, 1)) for n, c in (("p", phones), ("w", words))}
    random = np.random.default_rng(settings.seed)
    with progress("Reading features", sum(lengths), unit="frames") as advance:
        for number, name in enumerate(ids):
            states = store.get(name)  # (K, T, D)
            means[number] = states.float().mean(dim=1)
            if len(ranked[number]):
                chosen = states[:, ranked[number]].float()
                for meter, one in zip(meters, chosen, strict=True):
                    meter.add(one)
            kept["frames"].add_frames(states, number, anywhere[number].numpy(), None)
            codes = phones.frames(name, states.size(1), rate)
            kept["phones"].add_frames(states, number, labelled[number].numpy(), codes)
            for kind, source in (("p", phones), ("w", words)):
                spans = [s for s in source.track.get(name, ()) if s.value in source.number]
                spans = [s for s in spans if random.random() < shares[kind]]
                kept[kind].add_segments(states, number, spans, source.number)
            advance(lengths[number])
    rows = {n: k.finish(layers, width) for n, k in kept.items()}
    numbers = np.arange(len(ids))
    seconds = np.array(lengths, dtype=np.float64) / rate
    utterances = Rows(means, numbers, np.zeros_like(numbers), np.full_like(numbers, -1), [], seconds)
    few = [i for i in ids if store.length(i) > gap][:NEIGHBOURS]
    memory = [decorrelation_gap(store.get(i)[row].float() for i in few) / rate for row in range(layers)]
    geometry = [m.finish() if sum(len(r) for r in ranked) > 1 else None for m in meters]
    return Gathered(
        ids, store.layers, rate, geometry, memory, utterances, rows["frames"], rows["phones"], rows["p"], rows["w"],
        notes,
    )  # fmt: skip


class _Codes:
    """The spans of one kind, and the classes among them that are common enough."""

    def __init__(self, track: Tracks, *, fewest: int = 1, most: int | None = None) -> None:
        self.names = label_set(track, fewest=fewest)
        if most is not None and len(self.names) > most:
            counts = _counts(track)
            self.names = sorted(sorted(self.names, key=lambda n: (-counts[n], n))[:most])
        self.number = {name: k for k, name in enumerate(self.names)}
        self.track = track
        self.total = sum(s.value in self.number for spans in track.values() for s in spans)

    def frames(self, name: str, frames: int, rate: float) -> Integers:
        """(T,) class of each frame of an utterance, -1 = none."""
        return frame_codes(self.track.get(name, ()), self.number, frames=frames, frame_rate=rate)


def _counts(track: Tracks) -> dict[str, int]:
    names, counts = np.unique([s.value for spans in track.values() for s in spans], return_counts=True)
    return {str(n): int(c) for n, c in zip(names, counts, strict=True)}


def _how_many(settings: AnalysisSettings, layers: int, width: int, utterances: int) -> tuple[int, list[str]]:
    """How many rows of each kind fit into memory: frames, frames with phones, segments of phones and of words."""
    room = settings.held_gb * 1e9 - 4.0 * utterances * layers * width - 8.0 * layers * width**2
    most = int(max(room, 0) / (5 * 2.0 * layers * width))
    if most >= settings.frames:
        return settings.frames, []
    held = max(most, 500)
    return held, [f"{held} instead of {settings.frames} frames are looked at, to stay within {settings.held_gb:g} GB."]
