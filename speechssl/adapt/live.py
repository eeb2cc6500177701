"""Features of an upstream that is trained with a head: computed at each step, with gradients.

What lies below everything that is trained comes from a store (`speechssl.adapt.start`), or audio is read ahead.
K layers, B batch, S samples, T frames, D width.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from speechssl.adapt.config import AdaptConfig
from speechssl.adapt.distill import distance, distance_weight, without_bottlenecks
from speechssl.adapt.methods import Adapted, set_training
from speechssl.adapt.perturb import draw_skipped, perturbing
from speechssl.adapt.prune import prune_before
from speechssl.adapt.reading import Disturb, Reader, cut
from speechssl.adapt.start import Start, run_from_frontend, run_from_layer
from speechssl.data.batching import bucket_batches
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.feature_batches import collate
from speechssl.feature_store import FeatureStore
from speechssl.forward import Precision
from speechssl.loading import load_upstream
from speechssl.types import LossOutput, Utterance

AHEAD = 2
"""Batches whose audio is read while one is computed."""


@dataclass(frozen=True)
class Wanted:
    """What a head wants of an upstream."""

    layers: tuple[int, ...]
    """Hidden states, ascending."""
    pooled: bool = False
    """Whether their means over time, and not their frames."""
    precision: Precision = "float32"
    """Where nothing is trained; 'bf16' computes under autocast."""
    max_duration: float | None = None
    """Seconds to which training utterances are cropped; None = they are not."""


def heard_once(upstream: str) -> ConfigError:
    """What is wrong where audio is to be disturbed anew, and what is made of it is kept."""
    return ConfigError(
        f"What lies below the trained weights of '{upstream}' is computed once, so that audio can't be disturbed "
        "anew at each visit: set `adapt.cache=false`."
    )


class LiveFeatures:
    """What stands for a `FeatureStore` where the upstream is trained."""

    def __init__(
        self,
        adapted: Adapted,
        config: AdaptConfig,
        wanted: Wanted,
        utterances: Mapping[str, Utterance],
        *,
        start: Start,
        store: FeatureStore | None,
        teacher: FeatureStore | None = None,
    ) -> None:
        """
        Args:
            utterances: id -> utterance, of all splits.
            start: see `speechssl.adapt.start`.
            store: holds what is kept there; None = nothing is.
            teacher: holds a hidden state that the last one is to come close to; None = there is none.
        """
        self.adapted, self.config, self.wanted, self.start = adapted, config, wanted, start
        self.utterances = utterances
        self.layers = wanted.layers
        self.frame_rate = adapted.upstream.frame_rate
        self._store, self._teacher = store, teacher
        self._distance: Tensor | None = None
        self._reader = Reader(adapted.upstream.sample_rate) if store is None else None
        self._learning = False
        self._device = next((p.device for p in adapted.upstream.parameters()), torch.device("cpu"))

    def on(self, device: torch.device) -> "LiveFeatures":
        """The same of a copy of the upstream as it is now, on a device, to be computed beside this one."""
        copied = self.adapted.on(device)
        store = None if self._store is None else self._store.on(device)
        return LiveFeatures(copied, self.config, self.wanted, self.utterances, start=self.start, store=store)

    @property
    def num_layers(self) -> int:
        """K."""
        return len(self.wanted.layers)

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.adapted.upstream.hidden_sizes[self.wanted.layers[0]]

    def get(self, utterance_id: str) -> Tensor:
        """The features of an utterance as they are now: (K, T, D), or (K, D) where pooled."""
        states, _ = self.batch([utterance_id])
        return torch.stack([state[0] for state in states])

    def batch(self, utterance_ids: Sequence[str]) -> tuple[list[Tensor], Tensor]:
        """The features of a batch as they are now, without gradients.

        Returns:
            K of (B, T, D), 0 beyond the valid frames, or of (B, D) where pooled; and the valid frames, (B,) int64.
        """
        heard = [self._named(name) for name in utterance_ids]
        autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=self.wanted.precision == "bf16")
        with torch.no_grad(), autocast:
            self._set_learning(False)
            return self._compute(heard, torch.Generator(), crop=None)

    def batches(self, parts: Iterable[Sequence[str]]) -> Iterator[tuple[list[Tensor], Tensor]]:
        """`batch` of each of several, with their audio read ahead."""
        waiting: list[Sequence[str]] = []
        coming = iter(parts)
        while True:
            for part in islice(coming, AHEAD + 1 - len(waiting)):
                self.prefetch([self._named(name) for name in part])
                waiting.append(part)
            if not waiting:
                return
            yield self.batch(waiting.pop(0))

    def cut(self, utterances: Sequence[Utterance], generator: torch.Generator) -> list[Utterance]:
        """The stretches that a step hears; where something is kept, its frames are cut later."""
        if self._reader is None:
            return list(utterances)
        return cut(utterances, max_duration=self.wanted.max_duration, generator=generator)

    def disturb_with(self, disturb: Disturb) -> None:
        """Disturbs what training hears, where utterances have the label `reading.SEED`.

        Raises:
            ConfigError: what lies below is kept, and heard once.
        """
        if self._reader is None:
            raise heard_once(self.adapted.upstream.name)
        self._reader.disturb = disturb

    def prefetch(self, utterances: Sequence[Utterance]) -> None:
        """Begins to read what will be asked for."""
        if self._reader is not None:
            self._reader.prefetch(utterances)

    def split(self, utterances: Sequence[Utterance]) -> list[list[int]]:
        """Places of a batch's utterances in parts of at most `max_batch_seconds`, like durations together."""
        limit, longest = self.config.max_batch_seconds, self.wanted.max_duration
        if limit is None:
            return [list(range(len(utterances)))]
        seconds = [min(u.duration or 1.0, longest or u.duration or 1.0) for u in utterances]
        return bucket_batches(seconds, batch_seconds=limit)

    def prepare(self, step: int) -> None:
        """What is to be done to the weights before a step, from 1."""
        like = self.config.prune_like
        tuned = load_upstream(like) if like is not None and self.config.prune_rates and step == 1 else None
        prune_before(self.adapted, self.config, step, tuned=tuned)

    def learn(
        self, utterances: Sequence[Utterance], generator: torch.Generator, *, frozen: bool
    ) -> tuple[list[Tensor], Tensor]:
        """The features of a training batch, in training mode.

        Args:
            utterances: what `cut` returned.
            generator: of crops, hidden frames and skipped blocks; dropout draws from torch's own.
            frozen: whether gradients end at the features.

        Returns:
            As `batch`.
        """
        self._set_learning(True)
        before = generator.get_state()
        with torch.no_grad() if frozen else nullcontext():
            found = self._compute(utterances, generator, crop=self.wanted.max_duration)
        self._distance = None if frozen else self._to_teacher(utterances, before)
        return found

    def with_distance(self, out: LossOutput, step: int, steps: int) -> LossOutput:
        """Adds to the loss of what `learn` returned last the distance to the teacher, where there is one."""
        if self._distance is None:
            return out
        size = out.sample_size.to(out.loss_sum.device)
        total = out.loss_sum + distance_weight(step, steps) * self._distance * size
        return LossOutput(total, out.sample_size, {**out.metrics, "distance": self._distance.detach() * size})

    def _to_teacher(self, utterances: Sequence[Utterance], drawn: Tensor) -> Tensor | None:
        """The distance of what is heard, after generators in the state `drawn`, without what stands beside blocks."""
        if self._teacher is None or self._store is None:
            return None
        (kept, frames), (target, _) = (
            collate(store, utterances, max_duration=self.wanted.max_duration, generator=_in_state(drawn))
            for store in (self._store, self._teacher)
        )
        upstream, frames = self.adapted.upstream, frames.to(self._device)
        top = frozenset({len(upstream.hidden_sizes) - 1})
        with without_bottlenecks(upstream):
            states = run_from_frontend(upstream, kept[0].to(self._device), frames, layers=top)
        return distance(states, target[0].to(self._device), frames)

    def _compute(
        self, utterances: Sequence[Utterance], generator: torch.Generator, *, crop: float | None
    ) -> tuple[list[Tensor], Tensor]:
        if self._store is None:
            states, frames = self._from_audio(utterances, generator)
        else:
            kept, frames = collate(self._store, utterances, max_duration=crop, generator=generator)
            states = self._from_kept(kept.to(self._device), frames.to(self._device), generator)
        layers = [states[layer] for layer in self.wanted.layers]
        if self.wanted.pooled:
            layers = [layer.sum(dim=1) / frames[:, None].to(layer) for layer in layers]
        return layers, frames

    def _from_audio(
        self, utterances: Sequence[Utterance], generator: torch.Generator
    ) -> tuple[Mapping[int, Tensor], Tensor]:
        upstream = self.adapted.upstream
        if self._reader is None:
            raise SpeechsslError(f"'{upstream.name}' has nothing to hear: this is a mistake of the program.")
        waveform, lengths = self._reader.read(utterances)
        with self._perturbed(generator):
            out = upstream(waveform.to(self._device), lengths.to(self._device), layers=self.wanted.layers)
        return {layer: out.hidden_states[layer] for layer in self.wanted.layers}, out.lengths.cpu()

    def _from_kept(self, kept: Tensor, frames: Tensor, generator: torch.Generator) -> Mapping[int, Tensor]:
        """(K', B, T, C) and frames (B,) -> layer -> (B, T, D)."""
        upstream, layers = self.adapted.upstream, frozenset(self.wanted.layers)
        if self.start.kind == "frontend":
            with self._perturbed(generator):
                return run_from_frontend(upstream, kept[0], frames, layers=layers)
        skipped = draw_skipped(self.adapted, self.config, generator) if self._learning else frozenset()
        below = dict(zip(self.start.kept_layers(self.wanted.layers), kept, strict=True))
        return run_from_layer(upstream, below, frames, entered=self.start.layer, layers=layers, skipped_blocks=skipped)

    def _set_learning(self, learning: bool) -> None:
        set_training(self.adapted, learning)
        self._learning = learning

    def _perturbed(self, generator: torch.Generator) -> AbstractContextManager[None]:
        return perturbing(self.adapted, self.config, generator) if self._learning else nullcontext()

    def _named(self, utterance_id: str) -> Utterance:
        if utterance_id not in self.utterances:
            raise SpeechsslError(f"There is no utterance '{utterance_id}' among those that were asked for.")
        return self.utterances[utterance_id]


def _in_state(drawn: Tensor) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(drawn)
    return generator
