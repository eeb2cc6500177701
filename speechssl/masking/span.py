"""Span masking of frame sequences.

Conventions: `mask` is (B, T) bool, True = the frame is hidden from the encoder. B batch, T frames.
Reference: fairseq `compute_mask_indices` with static spans that may overlap. One difference: where so many spans fall
on a short utterance that every frame is hidden, fairseq raises an error and here the mask stands.
"""

from typing import Protocol

import torch
from torch import Tensor

from speechssl.errors import SpeechsslError


class SpanSettings(Protocol):
    """What the settings of an objective that hides spans are called."""

    @property
    def mask_prob(self) -> float:
        """Expected fraction of hidden frames if spans did not overlap."""

    @property
    def mask_length(self) -> int:
        """Frames."""

    @property
    def min_masks(self) -> int:
        """Spans per utterance."""

    @property
    def require_same_masks(self) -> bool:
        """Whether all utterances of a batch have as many hidden frames as the one with the fewest."""


def draw_span_mask(settings: SpanSettings, lengths: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """As `sample_span_mask`, with an objective's settings: (B, T = size) bool, on the device of `lengths`."""
    return sample_span_mask(
        lengths.to(generator.device),
        prob=settings.mask_prob,
        span=settings.mask_length,
        min_spans=settings.min_masks,
        generator=generator,
        max_length=size,
        require_same_masks=settings.require_same_masks,
    ).to(lengths.device)


def sample_span_mask(
    lengths: Tensor,
    *,
    prob: float,
    span: int,
    min_spans: int,
    generator: torch.Generator,
    max_length: int | None = None,
    require_same_masks: bool = False,
) -> Tensor:
    """Samples spans of hidden frames.

    The number of spans of an utterance of n frames is floor(prob * n / span + U[0, 1)), at least `min_spans`; their
    starts are drawn without replacement from the first n - span frames.

    Args:
        lengths: valid frames per utterance, (B,) int64, on the generator's device.
        prob: expected fraction of frames covered if spans did not overlap.
        span: span length in frames.
        min_spans: fewest spans per utterance.
        max_length: T; None = lengths.max().
        require_same_masks: hidden frames are uncovered at random until all utterances have equally many.

    Returns:
        (B, T) bool; frames at or beyond `lengths` are False.

    Paper: Baevski et al. 2020, sec. 3.1, arXiv:2006.11477.
    """
    if not 0 <= prob <= 1 or span < 1 or min_spans < 0:
        raise SpeechsslError(
            f"Masking needs 0 <= prob <= 1, span >= 1, min_spans >= 0, but got {prob}, {span}, {min_spans}."
        )
    size = int(lengths.max()) if max_length is None else max_length
    draw = torch.rand(lengths.size(0), generator=generator, device=lengths.device)
    count = (prob * lengths / span + draw).long().clamp(min=min_spans)  # (B,)
    # As fairseq: where the starts would not suffice, spans may begin later and end with the utterance.
    starts = torch.where(lengths - span <= count, count + 1, lengths - span).minimum(lengths)
    time = torch.arange(size, device=lengths.device)
    chosen = _choose(time < starts[:, None], count, generator)  # (B, T)
    total = torch.cumsum(chosen, dim=1)
    mask = total - torch.nn.functional.pad(total, (span, 0))[:, :size] > 0
    mask &= time < lengths[:, None]
    if require_same_masks:
        mask = _choose(mask, mask.sum(dim=1).min().expand(lengths.size(0)), generator)
    return mask


def _choose(allowed: Tensor, count: Tensor, generator: torch.Generator) -> Tensor:
    """Picks `count` (B,) of the `allowed` (B, T) frames per row, uniformly without replacement; (B, T) bool."""
    score = torch.rand(allowed.shape, generator=generator, device=allowed.device)
    order = torch.where(allowed, score, 2.0).argsort(dim=1)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(allowed.size(1), device=order.device).expand_as(order)
    )
    return allowed & (rank < count[:, None])
