"""Frames that do not fit into the cache: what fits is read from it, the rest is computed anew whenever it is heard.

K layers, T frames, D width.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from speechssl.extraction import extract, measure
from speechssl.feature_store import FeatureStore
from speechssl.forward import Precision
from speechssl.types import Utterance
from speechssl.upstream import Upstream

FRAME_TYPE = torch.bfloat16
"""As the cache keeps frames, so that it makes no difference which of them are there."""
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
    ) -> None:
        """
        Args:
            kept: what fits into the cache, in bf16.
            upstream: loads it; called when the first of the others is asked for.
            others: id -> utterance that is not in `kept`.
        """
        super().__init__({}, {}, frame_rate=kept.frame_rate, layers=kept.layers)
        self.kept, self.others = kept, others
        self.computed, self.from_cache, self.seconds = kept.computed, kept.from_cache, kept.seconds
        self.audio_seconds = kept.audio_seconds + sum(u.duration or 0.0 for u in others.values())
        self.bad = kept.bad
        self._load, self._precision = upstream, precision
        self._upstream: Upstream | None = None
        self._recent: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0

    def on(self, device: torch.device) -> "StreamedStore":
        """The same with a copy of the upstream on a device, to be read beside this one."""
        upstream = self._upstream = self._upstream or self._load()
        copied = copy.deepcopy(upstream).to(device)
        return StreamedStore(self.kept, lambda: copied, self.others, precision=self._precision)

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
            frames = torch.stack([states[layer].to(FRAME_TYPE) for layer in self.layers])  # (K, T, D)
            self._recent[utterance.id] = found[utterance.id] = frames
            self._bytes += frames.nbytes
        return found


def divide(
    utterances: Sequence[Utterance], upstream: Upstream, layers: Sequence[int], *, budget: float
) -> tuple[list[Utterance], list[Utterance], float]:
    """Those whose frames fit into a budget, from the first on, the others, and the bytes that all would take.

    Args:
        budget: bytes.
    """
    unknown = [u for u in utterances if u.duration is None]
    seconds = {u.id: u.duration or 0.0 for u in utterances} | measure(unknown, skip_bad=True)
    width = sum(upstream.hidden_sizes[layer] for layer in layers) * FRAME_TYPE.itemsize
    kept: list[Utterance] = []
    others: list[Utterance] = []
    total = 0.0
    for utterance in utterances:
        total += seconds[utterance.id] * upstream.frame_rate * width
        (kept if total <= budget or not kept else others).append(utterance)
    return kept, others, total
