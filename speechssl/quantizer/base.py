"""The interface of all quantizers.

N frames, D width, G codebooks, V entries per codebook. Frames are given without their padding.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechssl.objective import Reduce


@dataclass(frozen=True)
class QuantizerOutput:
    """What becomes of frames."""

    quantized: Tensor
    """(N, D'); its gradient goes straight through to the input where the quantizer is trained so."""
    codes: Tensor
    """(N, G) int64."""
    loss: Tensor
    """What the quantizer adds to the objective (commitment and the like), summed over the frames, scalar float32; 0
    where there is nothing."""
    usage: Tensor
    """(G, V) float32: how often each entry was chosen."""
    probability: Tensor
    """(G, V) float32: the sum over frames of the (soft) assignment; equal to `usage` where assignment is hard."""


class Quantizer(nn.Module, ABC):
    """Maps frames to codes.

    In training mode a quantizer may explore, and gathers what its codebooks learn from; they change in `end_step`
    alone, so that all micro-batches of a step are quantized alike in all processes. In evaluation mode it is a pure
    function.
    """

    groups: int
    """G."""
    entries: int
    """V; of a quantizer with unequal codebooks the largest."""
    width: int
    """D of the frames it takes."""

    @abstractmethod
    def forward(self, frames: Tensor, *, generator: torch.Generator | None = None) -> QuantizerOutput:
        """Quantizes (N, D); `generator` draws where the quantizer explores in training."""

    @abstractmethod
    def encode(self, frames: Tensor) -> Tensor:
        """The codes that evaluation mode gives: (N, D) -> (N, G) int64."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """The vectors of codes: (N, G) int64 -> (N, D'), as `quantized` holds them in evaluation mode."""

    def end_step(self, reduce: Reduce, *, generator: torch.Generator | None = None) -> None:
        """Lets codebooks learn from what was gathered since the last call, over all processes; see `Objective`."""
