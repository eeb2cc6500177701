"""Alteration of feature sequences along time, channels and magnitude, for models that learn to undo it.

Conventions: `mask` True = a number that is to be predicted. B batch, T frames, C channels, K spans.
Reference: S3PRL `pretrain/mockingjay/task.py`. Two differences: noise is drawn for each utterance by itself, where
S3PRL draws once for a whole batch, so that batches of other sizes mean the same; and a span that would reach beyond an
utterance shorter than itself ends with it, where S3PRL fails.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from speechssl.errors import ConfigError


@dataclass(frozen=True)
class AlterationConfig:
    """How much is altered; the defaults are those of TERA.

    Paper: Liu et al. 2021, sec. III-B, arXiv:2007.06028.
    """

    time_proportion: float = 0.15
    """Share of the frames in altered spans if these did not overlap; 0 = none."""
    time_span: int = 7
    """Frames."""
    zero_prob: float = 0.8
    """Of an utterance, that its altered spans become 0."""
    replace_prob: float = 0.1
    """That they become other stretches of the utterance; otherwise they stay, and are predicted all the same."""
    channel_proportion: float = 0.2
    """Widest band of channels that becomes 0 in all of an utterance, over all channels; the width is drawn evenly from
    0 to this. 0 = none."""
    noise_prob: float = 0.15
    """That noise is added to all of an utterance."""
    noise_deviation: float = 0.2

    def __post_init__(self) -> None:
        for name in ("time_proportion", "channel_proportion", "noise_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"`{name}` must be >= 0 and <= 1, but is {getattr(self, name)}.")
        if self.time_span < 1:
            raise ConfigError(f"`time_span` must be positive, but is {self.time_span}.")
        if min(self.zero_prob, self.replace_prob) < 0 or self.zero_prob + self.replace_prob > 1:
            raise ConfigError(
                f"`zero_prob` and `replace_prob` are shares of the utterances, but are {self.zero_prob} and "
                f"{self.replace_prob}."
            )


@dataclass(frozen=True)
class Altered:
    """What becomes of features."""

    features: Tensor
    """(B, T, C)."""
    mask: Tensor
    """(B, T, C) bool, True = to be predicted; within the valid frames."""


def alter(features: Tensor, lengths: Tensor, config: AlterationConfig, *, generator: torch.Generator) -> Altered:
    """Alters features along three axes, each drawn for every utterance by itself.

    Spans of frames become 0, or other stretches of the same utterance, or stay; a band of channels becomes 0; noise is
    added. The frames of the spans and the channels of the band are to be predicted: all valid frames, where the config
    has neither.

    Args:
        features: (B, T, C).
        lengths: valid frames, (B,) int64, at least 1.
        generator: on the CPU or the device of `features`.

    Paper: Liu et al. 2021, sec. III-B, arXiv:2007.06028; along time alone: Liu et al. 2020, sec. 2.2, arXiv:1910.12638.
    """
    B, T, C = features.shape
    device = features.device
    inside = torch.arange(T, device=device) < lengths[:, None]  # (B, T)
    mask = torch.zeros(B, T, C, dtype=torch.bool, device=device)
    altered = features
    if config.time_proportion > 0:
        spans, source = sample_spans(lengths, T, config, generator=generator)
        dice = _uniform((B, 1), generator, device)
        zeroed = spans & (dice < config.zero_prob)
        replaced = (spans & (dice >= config.zero_prob) & (dice < config.zero_prob + config.replace_prob))[:, :, None]
        others = features.gather(1, source[:, :, None].expand(B, T, C))
        altered = torch.where(replaced, others, features).masked_fill(zeroed[:, :, None], 0.0)
        mask = mask | spans[:, :, None]
    if config.channel_proportion > 0:
        band = sample_band((B, C), config.channel_proportion, generator=generator, device=device)[
            :, None, :
        ]  # (B, 1, C)
        altered = altered.masked_fill(band, 0.0)
        mask = mask | (band & inside[:, :, None])
    if config.noise_prob > 0:
        noisy = _uniform((B, 1, 1), generator, device) < config.noise_prob
        noise = torch.randn(B, T, C, generator=generator, device=generator.device).to(device, altered.dtype)
        altered = altered + config.noise_deviation * noise * noisy
    if config.time_proportion == 0 and config.channel_proportion == 0:
        mask = inside[:, :, None].expand(B, T, C)
    return Altered(altered.masked_fill(~inside[:, :, None], 0.0), mask)


def sample_spans(
    lengths: Tensor, frames: int, config: AlterationConfig, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws spans of frames, and for each of them a stretch of the same utterance to take its place.

    An utterance of n frames has round(n * proportion / span) of them; their starts, and those of the others, are drawn
    without replacement from the first n - span frames. Spans may overlap.

    Args:
        lengths: valid frames, (B,) int64, at least 1.
        frames: T.

    Returns:
        (B, T) bool, True = in a span; and (B, T) int64, the frame to take in place of each.
    """
    device, span = lengths.device, config.time_span
    time = torch.arange(frames, device=device)
    possible = (lengths - span).clamp(min=1)  # (B,)
    count = (lengths.double() * config.time_proportion / span).round().long().minimum(possible)  # (B,)
    most = max(1, min(frames, round(frames * config.time_proportion / span)))  # K, known without a look at the device
    allowed = time < possible[:, None]
    score = _uniform((2, len(lengths), frames), generator, device)
    order = torch.where(allowed, score, 2.0).argsort(dim=2)[:, :, :most]  # (2, B, K): starts, and those of others
    used = torch.arange(most, device=device) < count[:, None]  # (B, K)
    steps = torch.arange(span, device=device)
    places = torch.where(used[:, :, None], order[0, :, :, None] + steps, frames).flatten(1)  # (B, K span); T = nowhere
    number = torch.arange(most, device=device)[:, None].expand(most, span).flatten().expand_as(places)
    owner = torch.full((len(lengths), frames + span), -1, device=device)
    owner = owner.scatter_reduce(1, places, number, "amax")[:, :frames]  # (B, T), the last span that covers a frame
    inside = (owner >= 0) & (time < lengths[:, None])
    shift = (order[1] - order[0]).gather(1, owner.clamp(min=0))  # (B, T)
    source = torch.where(inside, time + shift, time).minimum(lengths[:, None] - 1)
    return inside, source


def sample_band(
    shape: tuple[int, int], proportion: float, *, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Draws one band of neighbouring channels for each utterance.

    Args:
        shape: (B, C).
        proportion: widest band, over C, rounded down; the width is drawn from 0 on, the start from what leaves one more
            channel above the band, as S3PRL.

    Returns:
        (B, C) bool, True = in the band.
    """
    B, C = shape
    draws = _uniform((2, B), generator, device)
    width = (draws[0] * (int(C * proportion) + 1)).long()  # (B,)
    start = (draws[1] * (C - width).clamp(min=1)).long()
    channel = torch.arange(C, device=device)
    return (channel >= start[:, None]) & (channel < (start + width)[:, None])


def _uniform(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device).to(device)
