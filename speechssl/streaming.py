"""Frames that do not fit into the cache: what fits is read from it, the rest is computed anew whenever it is heard.

K layers, T frames, D width.
"""

import copy
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from speechssl.cache import DType, FeatureCache
from speechssl.extraction import extract, measure, measure_heard
from speechssl.feature_store import FeatureStore
from speechssl.forward import Precision
from speechssl.packs import DTYPES
from speechssl.types import Utterance
from speechssl.upstream import Upstream

logger = logging.getLogger(__name__)
MEMORY = 1 << 30
"""Bytes of frames that were computed last and are kept in memory."""


class StreamedStore(FeatureStore):
    """A store of some utterances, with an upstream that computes the others when they are asked for."""

    def __init__(
        self,
        kept: FeatureStore,
        upstream: Callable[[], Upstream],
        others: Mapping[str, Utterance],
        *,
        precision: Precision,
        dtype: DType = "bf16",
    ) -> None:
        """
        Args:
            kept: what fits into the cache.
            upstream: loads it; called when the first of the others is asked for.
            others: id -> utterance that is not in `kept`.
            dtype: of `kept`, and so of the others, so that it makes no difference which of them are there.
        """
        super().__init__({}, {}, frame_rate=kept.frame_rate, layers=kept.layers)
        self.kept, self.others = kept, others
        self.computed, self.from_cache, self.seconds = kept.computed, kept.from_cache, kept.seconds
        self.audio_seconds = kept.audio_seconds + sum(u.duration or 0.0 for u in others.values())
        self.bad = kept.bad
        self._load, self._precision, self._dtype = upstream, precision, dtype
        self._upstream: Upstream | None = None
        self._recent: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0

    @override
    def on(self, device: torch.device) -> "StreamedStore":
        upstream = self._upstream = self._upstream or self._load()
        copied = copy.deepcopy(upstream).to(device)
        return StreamedStore(self.kept, lambda: copied, self.others, precision=self._precision, dtype=self._dtype)

    @property
    @override
    def hidden_size(self) -> int:
        return self.kept.hidden_size

    @property
    @override
    def ids(self) -> list[str]:
        return [*self.kept.ids, *self.others]

    @override
    def __len__(self) -> int:
        return len(self.kept) + len(self.others)

    @override
    def __contains__(self, utterance_id: object) -> bool:
        return utterance_id in self.kept or utterance_id in self.others

    @override
    def get(self, utterance_id: str) -> Tensor:
        return self.get_all([utterance_id])[0]

    @override
    def get_all(self, utterance_ids: Sequence[str]) -> list[Tensor]:
        """The features of several, each (K, T, D); those that have to be computed go through the upstream together."""
        found = {i: self._recent[i] for i in utterance_ids if i in self._recent}
        missing = [i for i in dict.fromkeys(utterance_ids) if i in self.others and i not in found]
        if missing:
            found |= self._compute(missing)
        for name in found:
            self._recent.move_to_end(name)
        while self._bytes > MEMORY and len(self._recent) > 1:
            self._bytes -= self._recent.popitem(last=False)[1].nbytes
        return [found[i] if i in found else self.kept.get(i) for i in utterance_ids]

    @override
    def length(self, utterance_id: str) -> int:
        return self.get(utterance_id).size(1)

    @override
    def close(self) -> None:
        self.kept.close()

    def _compute(self, missing: Sequence[str]) -> dict[str, Tensor]:
        upstream = self._upstream = self._upstream or self._load()
        items = [self.others[i] for i in missing]
        found = {}
        for utterance, states in extract(upstream, items, layers=self.layers, precision=self._precision):
            frames = torch.stack([states[layer].to(DTYPES[self._dtype]) for layer in self.layers])  # (K, T, D)
            self._recent[utterance.id] = found[utterance.id] = frames
            self._bytes += frames.nbytes
        return found


class FrameKeeper:
    """Keeps frames of one set of utterances in the cache, all of them together within its budget."""

    def __init__(
        self,
        cache: FeatureCache,
        utterances: Sequence[Utterance],
        *,
        precision: Precision,
        skip_bad: bool,
        devices: Sequence[torch.device],
        share: float = 1.0,
    ) -> None:
        """
        Args:
            precision: see `FeatureCache.features`; so are the next ones.
            share: of the budget, where several upstreams are kept side by side.
        """
        self._cache, self._utterances = cache, utterances
        self._precision, self._skip_bad, self._devices = precision, skip_bad, devices
        self._left = 1e9 * cache.max_gb * share

    def keep(
        self,
        upstream: Upstream,
        layers: Sequence[int],
        *,
        dtype: DType = "bf16",
        load: Callable[[], Upstream] | None = None,
    ) -> FeatureStore:
        """The frames of all; what does not fit any more, the last ones, is computed whenever it is heard.

        Args:
            load: gives an upstream that can compute, where `upstream` only stands for one; None = it can.
        """
        sizes = frame_bytes(self._utterances, upstream, layers, dtype)
        kept, others = divide(self._utterances, sizes, budget=self._left)
        store = self._cache.features(
            upstream,
            kept,
            layers=layers,
            dtype=dtype,
            precision=self._precision,
            skip_bad=self._skip_bad,
            devices=self._devices,
        )
        if others:
            logger.warning(
                "The frames of %d utterances take %.1f GB, and the cache has %.1f left for this upstream: %d of them "
                "are computed anew at each pass. Raise `--cache-gb`, or choose fewer `features.layers`.",
                len(sizes), sum(sizes.values()) / 1e9, self._left / 1e9, len(others),
            )  # fmt: skip
        self._left = max(0.0, self._left - sum(sizes[u.id] for u in kept))
        return self._streamed(store, upstream, others, dtype, load) if others else store

    def _streamed(
        self,
        store: FeatureStore,
        upstream: Upstream,
        others: Sequence[Utterance],
        dtype: DType,
        load: Callable[[], Upstream] | None,
    ) -> StreamedStore:
        able = upstream if load is None else load()  # what only stands for one does not know which audio is too short
        heard = measure_heard(able, others, skip_bad=self._skip_bad, bad=store.bad)
        streamed = {u.id: u for u in others if u.id in heard}
        return StreamedStore(store, lambda: able, streamed, precision=self._precision, dtype=dtype)


def frame_bytes(
    utterances: Sequence[Utterance], upstream: Upstream, layers: Sequence[int], dtype: DType
) -> dict[str, float]:
    """About how much the frames of each utterance take in the cache, by their ids; 0 where it can't be read."""
    unknown = measure([u for u in utterances if u.duration is None], skip_bad=True)
    rate = upstream.frame_rate * sum(upstream.hidden_sizes[layer] for layer in layers) * DTYPES[dtype].itemsize
    return {u.id: rate * (unknown.get(u.id, 0.0) if u.duration is None else u.duration) for u in utterances}


def divide(
    utterances: Sequence[Utterance], sizes: Mapping[str, float], *, budget: float
) -> tuple[list[Utterance], list[Utterance]]:
    """Those that fit into a budget together, from the first on and at least one, and the others.

    Args:
        sizes: by id, in the unit of the budget.
    """
    kept: list[Utterance] = []
    others: list[Utterance] = []
    total = 0.0
    for utterance in utterances:
        total += sizes[utterance.id]
        (kept if total <= budget or not kept else others).append(utterance)
    return kept, others
