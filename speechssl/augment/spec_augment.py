"""SpecAugment on features: time warping, and masking of stretches of time and of channels.

B batch, T frames, D width. Masked values become 0.
Paper: Park et al. 2019, arXiv:1904.08779; the defaults are S3PRL's for SUPERB ASR (`downstream/asr/config.yaml`: warp
5, 2 time masks of up to 40 frames, 4 channel masks of up to 50) at its 50 Hz and 768 channels. Here widths are in
seconds and in fractions of D, so that one setting means the same for every upstream; and warping interpolates linearly
where S3PRL is bicubic.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from speechssl.lengths import lengths_to_padding_mask


@dataclass(frozen=True)
class SpecAugmentConfig:
    """Widths are drawn uniformly from 0 to their maximum, for each utterance and mask."""

    time_warp: float = 0.1
    """Largest shift of a point in time, seconds; 0 = no warping."""
    time_masks: int = 2
    time_masks_per_second: float = 0.0
    """Above 0, each utterance has so many time masks per second, at most `time_masks`, as in adaptive SpecAugment (Park
    et al. 2020, arXiv:1912.05533, with `max_time_fraction`)."""
    time_width: float = 0.8
    """Seconds."""
    max_time_fraction: float = 1.0
    """A single time mask covers at most this fraction of its utterance."""
    channel_masks: int = 4
    channel_width: float = 50 / 768
    """Fraction of D."""


def spec_augment(
    features: Tensor, lengths: Tensor, *, frame_rate: float, config: SpecAugmentConfig, generator: torch.Generator
) -> Tensor:
    """Warps and masks a batch.

    Args:
        features: (B, T, D).
        lengths: valid frames, (B,) int64.
        frame_rate: Hz.
        generator: on the CPU.

    Returns:
        (B, T, D), a new tensor; frames beyond `lengths` are 0.
    """
    if config.time_warp > 0:
        features = time_warp(features, lengths, window=config.time_warp * frame_rate, generator=generator)
    widths = (config.max_time_fraction * lengths.cpu()).clamp(max=config.time_width * frame_rate)
    counts = torch.full_like(lengths.cpu(), config.time_masks)
    if config.time_masks_per_second > 0:
        counts = counts.minimum((config.time_masks_per_second / frame_rate * lengths.cpu() + 1e-6).long())
    hidden = _spans(widths, lengths.cpu(), features.size(1), counts, generator)  # (B, T)
    size = torch.full_like(lengths.cpu(), features.size(2))
    counts = torch.full_like(size, config.channel_masks)
    dropped = _spans(config.channel_width * size, size, features.size(2), counts, generator)  # (B, D)
    hidden = hidden | lengths_to_padding_mask(lengths.cpu(), features.size(1))
    mask = hidden[:, :, None] | dropped[:, None, :]
    return features.masked_fill(mask.to(features.device), 0.0)


def time_warp(features: Tensor, lengths: Tensor, *, window: float, generator: torch.Generator) -> Tensor:
    """Moves one point of each utterance by up to `window` frames and stretches both sides linearly.

    Args:
        features: (B, T, D).
        lengths: valid frames, (B,) int64; utterances of at most 2 * window + 2 frames stay as they are.
        window: frames.
    """
    batch, frames, _ = features.shape
    last = (lengths.cpu() - 1).double().clamp(min=1)[:, None]  # (B, 1)
    margin = min(window + 1, float(last.max()) / 2)
    centre = margin + torch.rand(batch, 1, generator=generator, dtype=torch.float64) * (last - 2 * margin).clamp(min=0)
    moved = centre + (2 * torch.rand(batch, 1, generator=generator, dtype=torch.float64) - 1) * window
    moved = torch.where(last > 2 * window + 1, moved, centre)
    at = torch.arange(frames, dtype=torch.float64)[None, :]  # (1, T)
    left = at * (centre / moved.clamp(min=1e-6))
    right = centre + (at - moved) * (last - centre) / (last - moved).clamp(min=1e-6)
    source = torch.where(at < moved, left, right)
    source = torch.where(moved == centre, at.expand_as(source), source)
    source = torch.minimum(source.clamp(min=0), torch.maximum(last, at))
    below = source.floor().long().clamp(max=frames - 1)
    above = (below + 1).clamp(max=frames - 1)
    share = (source - below).to(features.dtype).to(features.device)[:, :, None]
    rows = torch.arange(batch)[:, None]
    return torch.lerp(features[rows, below], features[rows, above], share)


def _spans(widths: Tensor, sizes: Tensor, total: int, counts: Tensor, generator: torch.Generator) -> Tensor:
    """`counts` spans per row, each up to `widths` long and inside `sizes`: (B, total) bool, True = inside a span."""
    most = int(counts.max())
    if most == 0:
        return torch.zeros(len(sizes), total, dtype=torch.bool)
    shape = (len(sizes), most)
    length = (torch.rand(shape, generator=generator) * (widths.float()[:, None] + 1)).floor()
    length = torch.minimum(length, sizes[:, None].float()) * (torch.arange(most) < counts[:, None])
    start = (torch.rand(shape, generator=generator) * (sizes[:, None] - length + 1)).floor()
    at = torch.arange(total)[None, None, :]
    return ((at >= start[:, :, None]) & (at < (start + length)[:, :, None])).any(dim=1)
