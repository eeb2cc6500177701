"""What the objectives with a teacher that follows the student have in common.

B batch, T frames, D width, L blocks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from speechssl.contextual.model import ContextualUpstream
from speechssl.encoder.transformer import TransformerEncoder, draw_skipped_blocks
from speechssl.errors import ConfigError
from speechssl.objective import Labelling, Objective, PretrainInputs, Reduce
from speechssl.targets.ema_teacher import EmaTeacher, ema_decay
from speechssl.upstream import normalize_waveform


class TeacherConfig(Protocol):
    """What a family's config says about the teacher."""

    @property
    def ema_decay(self) -> float:
        """Of the first updates."""

    @property
    def ema_end_decay(self) -> float:
        """From `ema_ramp_steps` on."""

    @property
    def ema_ramp_steps(self) -> int:
        """Updates in which the decay rises linearly."""

    @property
    def target_layers(self) -> int:
        """How many of the last blocks make targets."""


@dataclass(frozen=True)
class Heard:
    """What student and teacher both start from."""

    projected: Tensor
    """(B, T, D), before dropout and masking."""
    frames: Tensor
    """Valid frames, (B,) int64."""
    padding_mask: Tensor | None
    """(B, T) bool; None = no frame is padding."""


class SelfDistillation(Objective):
    """A student that hears masked speech and a teacher, its moving average, that hears all of it.

    Both share what makes the features; the teacher follows the encoder.
    """

    upstream: ContextualUpstream

    def __init__(
        self,
        upstream: ContextualUpstream,
        config: TeacherConfig,
        labelling: Labelling,
        *,
        copied: Sequence[str] = (),
    ) -> None:
        """
        Args:
            copied: beginnings of names in the encoder that the teacher takes from the student without an average.
        """
        super().__init__(upstream, labelling)
        self.depth = len(upstream.hidden_sizes) - 1
        if not 1 <= config.target_layers <= self.depth:
            raise ConfigError(f"`target_layers` must lie in 1..{self.depth}, but is {config.target_layers}.")
        if not 0 <= config.ema_decay <= config.ema_end_decay <= 1:
            raise ConfigError(
                "The teacher needs 0 <= ema_decay <= ema_end_decay <= 1, but got "
                f"{config.ema_decay} and {config.ema_end_decay}."
            )
        self.schedule = config
        self.decay = 0.0
        self.skips_blocks = upstream.config.layerdrop > 0
        self.teacher = EmaTeacher(upstream.encoder, copied=copied)

    def hear(self, inputs: PretrainInputs) -> Heard:
        """Normalises waveforms, and computes and projects features."""
        waveform = inputs.waveform
        if self.upstream.normalize:
            waveform = normalize_waveform(waveform, inputs.lengths)
        features, frames = self.upstream.extract_features(waveform, inputs.lengths)
        padding_mask = self.upstream.padding_mask(frames, features.size(1))
        return Heard(self.upstream.project(features), frames, padding_mask)

    def teacher_results(self, heard: Heard) -> Iterator[Tensor]:
        """The feed-forward results of the teacher's last blocks, (B, T, D) each; to be consumed without gradients."""
        blocks = frozenset(range(self.depth - self.schedule.target_layers, self.depth))
        encoder = self.teacher.module
        if not isinstance(encoder, TransformerEncoder):
            raise ConfigError(f"A {type(encoder).__name__} gives no feed-forward results: use a TransformerEncoder.")
        return encoder.feed_forward_results(heard.projected.detach(), heard.padding_mask, blocks=blocks)

    def skipped_blocks(self, generator: torch.Generator) -> frozenset[int]:
        """Draws the student's blocks that this micro-batch passes by."""
        if not self.training:
            return frozenset()
        return draw_skipped_blocks(self.depth, self.upstream.config.layerdrop, generator=generator)

    def begin_step(self, step: int) -> None:
        """See `Objective`."""
        config = self.schedule
        self.decay = ema_decay(
            step + 1, start=config.ema_decay, end=config.ema_end_decay, ramp_steps=config.ema_ramp_steps
        )

    def end_step(self, step: int, reduce: Reduce) -> None:  # noqa: ARG002  # every process has the same weights
        """See `Objective`: the teacher follows."""
        if self.decay < 1:
            self.teacher.update(self.upstream.encoder, self.decay)
