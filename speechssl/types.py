"""The value types that every part of the toolkit exchanges.

Shapes: B batch, S samples, T frames, D width, L layers.
Polarity is fixed here, once: `mask` True = hidden from the encoder, `padding_mask` True = padding.
Lengths are always (B,) int64 and count valid samples or frames.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from torch import Tensor

from speechssl.errors import SpeechsslError


class HiddenStates(Sequence[Tensor]):
    """The hidden states of an upstream, indexed by layer as transformers does.

    Index 0 is the input of the first block, index L (or -1) the output of the last. Only the layers that were
    asked for are held; any other index is an error that says which are. Iteration yields the held layers in order.
    """

    def __init__(self, states: Mapping[int, Tensor], num_states: int) -> None:
        self._states = dict(sorted(states.items()))
        self._num_states = num_states

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are held, in ascending order."""
        return tuple(self._states)

    @overload
    def __getitem__(self, layer: int) -> Tensor: ...
    @overload
    def __getitem__(self, layer: slice) -> "Sequence[Tensor]": ...
    def __getitem__(self, layer: "int | slice") -> "Tensor | Sequence[Tensor]":
        if isinstance(layer, slice):
            return [self[i] for i in range(*layer.indices(self._num_states))]
        index = layer + self._num_states if layer < 0 else layer
        if index not in self._states:
            if 0 <= index < self._num_states:
                raise SpeechsslError(f"Layer {layer} was not computed: `layers` was {list(self._states)}.")
            raise IndexError(f"`layer` must be < {self._num_states}, but is {layer}.")
        return self._states[index]

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._states.values())


@dataclass(frozen=True)
class UpstreamOutput:
    """What an upstream returns for a batch."""

    hidden_states: HiddenStates
    """L+1 tensors (B, T, D), or those of the layers asked for; frames beyond `lengths` are 0."""
    lengths: Tensor
    """Valid frames per utterance, (B,) int64."""
    frame_rate: float
    """Frames per second, Hz."""


@dataclass(frozen=True)
class LossOutput:
    """A summed loss and what to divide it by, so that ranks and accumulation steps weigh frames equally."""

    loss_sum: Tensor
    """Sum over the scored frames (or utterances), scalar."""
    sample_size: Tensor
    """Number of scored frames (or utterances), scalar; the caller divides by its global sum."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Sums to be divided by the global `sample_size` for logging, scalars."""


@dataclass(frozen=True)
class Utterance:
    """A stretch of an audio file with its labels: what corpora hand out and extraction takes."""

    id: str
    path: str
    start: float = 0.0
    """Seconds from the beginning of the file."""
    duration: float | None = None
    """Seconds; None = to the end of the file."""
    labels: Mapping[str, Any] = field(default_factory=dict)
    """Among others `text`, `speaker`, `language`, `source`, `licence`; absent where not known."""
