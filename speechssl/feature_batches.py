"""Batches of features for a head to train on.

K layers, B batch, T frames, D width.
"""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from speechssl.types import Utterance

States: TypeAlias = Tensor | list[Tensor]
"""(K, B, T, D), or K of (B, T, D); without T where pooled."""


class Features(Protocol):
    """What fitting needs of `speechssl.feature_store.FeatureStore`."""

    frame_rate: float
    layers: tuple[int, ...]
    """Which hidden states, ascending; row k of every array is layer `layers[k]`."""

    @property
    def num_layers(self) -> int:
        """K."""

    @property
    def hidden_size(self) -> int:
        """D."""

    def get(self, utterance_id: str) -> Tensor:
        """(K, T, D), or (K, D) where pooled."""

    def get_all(self, utterance_ids: Sequence[str]) -> list[Tensor]:
        """`get` of each."""

    def batch(self, utterance_ids: Sequence[str]) -> tuple[States, Tensor]:
        """(K, B, T, D), or (K, B, D) where pooled, and the valid frames (B,)."""


def collate(
    features: Features, utterances: Sequence[Utterance], *, max_duration: float | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A training batch; utterances longer than `max_duration` seconds are cropped at random.

    Returns:
        (K, B, T, D) or, where pooled, (K, B, D); and valid frames (B,) int64.
    """
    ids = [u.id for u in utterances]
    arrays = features.get_all(ids)
    limit = None if max_duration is None else max(1, round(max_duration * features.frame_rate))
    if limit is None or arrays[0].dim() == 2 or max(a.size(1) for a in arrays) <= limit:
        states, frames = features.batch(ids)
        return states if isinstance(states, Tensor) else torch.stack(states), frames
    lengths = [min(a.size(1), limit) for a in arrays]
    layers, _, size = arrays[0].shape
    out = arrays[0].new_zeros(layers, len(arrays), max(lengths), size)  # (K, B, T, D)
    for row, (array, length) in enumerate(zip(arrays, lengths, strict=True)):
        start = int(torch.randint(array.size(1) - length + 1, (), generator=generator))
        out[:, row, :length] = array[:, start : start + length]
    return out, torch.tensor(lengths)


def place(states: States, device: torch.device) -> States:
    """The same on a device."""
    return states.to(device) if isinstance(states, Tensor) else [state.to(device) for state in states]
