"""What a pre-training objective is: an upstream with all that is needed to compute its loss.

A family's `pretrain.py` holds `PRETRAIN_PRESETS` (public preset name -> objective config, its defaults those of the
paper), `TRAIN_PRESETS` (preset -> `PretrainConfig`, where the paper's optimisation differs from HuBERT's) and
`build_pretraining(upstream, config, labelling) -> Objective`.

B batch, S samples, T frames, U tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from speechssl.errors import SpeechsslError
from speechssl.types import LossOutput
from speechssl.upstream import Upstream

Reduce = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""Adds named tensors up over all processes."""


@dataclass(frozen=True)
class PretrainInputs:
    """What an objective is given of one micro-batch."""

    waveform: Tensor
    """(B, S) float32, 0 beyond `lengths`."""
    lengths: Tensor
    """Valid samples, (B,) int64."""
    codes: tuple[Tensor, ...] = ()
    """Frame labels, one per label set: (B, T) int64 at its own rate from the first sample on; the last one is held."""
    tokens: Tensor | None = None
    """Transcripts, (B, U) int64 from 1 on (0 is the blank), 0 beyond `token_lengths`."""
    token_lengths: Tensor | None = None
    """(B,) int64."""
    noise: Tensor | None = None
    """Noise to mix in, (B, S) float32."""

    def to(self, device: torch.device) -> "PretrainInputs":
        """The same on a device."""
        moved = {
            f.name: value.to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved, codes=tuple(c.to(device, non_blocking=True) for c in self.codes))


@dataclass(frozen=True)
class Labelling:
    """What labels a run is given; a field is empty where it is given none."""

    num_labels: tuple[int, ...] = ()
    """K of each set of frame labels."""
    label_rates: tuple[float, ...] = ()
    """Of each set, Hz."""
    num_tokens: int | None = None
    """Of the transcripts' vocabulary, the blank included."""


class Objective(nn.Module, ABC):
    """Computes the loss of a micro-batch; holds the upstream that is saved in the end.

    Whatever must survive an interruption is a parameter or a buffer, or a function of the step. What is learned from
    the data other than by gradients (codebooks, teachers) changes in `end_step` alone, from sums over all micro-batches
    of all processes, so that neither their number nor their order changes the result.
    """

    uses_labels: ClassVar[bool] = False
    """Whether frame labels are its targets."""
    uses_tokens: ClassVar[bool] = False
    """Whether transcripts are."""
    fit_batches: ClassVar[int] = 0
    """Micro-batches that `begin_run` wants."""
    limits: Mapping[str, float] = {}
    """Logged value -> least one of a healthy run: the collapse guard stops a run that stays below."""
    uses_noise: bool = False
    """Whether noise is mixed into what is heard, where there is some (`train.noise`)."""
    skips_blocks: bool = False
    """Whether steps may leave weights without gradients, as layer drop does."""

    def __init__(self, upstream: Upstream, labelling: Labelling) -> None:
        """
        Raises:
            SpeechsslError: labels or transcripts that are missing, or given to an objective that uses none.
        """
        super().__init__()
        self.upstream = upstream
        _check_need(upstream, "frame labels", self.uses_labels, bool(labelling.num_labels), "--labels")
        _check_need(upstream, "transcripts", self.uses_tokens, labelling.num_tokens is not None, "train.transcripts")

    @abstractmethod
    def forward(self, inputs: PretrainInputs, generator: torch.Generator) -> LossOutput:
        """The summed loss; `generator` makes every draw but dropout's, on the CPU or the device of `inputs`."""

    def begin_run(self, batches: Iterable[PretrainInputs]) -> None:
        """Called once, before the first step of a new run, with its first `fit_batches` micro-batches: the same ones in
        every process. For statistics and first codebooks; what it makes must stand in buffers."""

    def begin_step(self, step: int) -> None:
        """Called before the micro-batches of an update; `step` counts those that were made, so it begins with 0."""

    def end_step(self, step: int, reduce: Reduce) -> None:
        """Called after update number `step` (from 1 on), in every process: for teachers and codebooks."""

    def trained_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What the optimiser updates."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]


def _check_need(upstream: Upstream, what: str, needed: bool, given: bool, option: str) -> None:
    if needed and not given:
        raise SpeechsslError(f"Pre-training '{upstream.name}' needs {what}: give them with `{option}`.")
    if given and not needed:
        raise SpeechsslError(f"Pre-training '{upstream.name}' uses no {what}: leave out `{option}`.")
