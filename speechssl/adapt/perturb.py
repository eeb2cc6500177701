"""What training does to the input of the blocks: frames and channels are hidden, and blocks passed by.

B batch, T frames, D width, L blocks.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from speechssl.adapt.config import AdaptConfig
from speechssl.adapt.methods import MASK, Adapted
from speechssl.encoder.transformer import sample_skipped_blocks
from speechssl.errors import ConfigError
from speechssl.masking.span import sample_span_mask
from speechssl.upstream import Upstream

MIN_SPANS = 2
"""Of hidden frames per utterance, as fairseq's `wav2vec2.py`; of channels there may be none."""


PARTS = ("encoder", "projection", "extract_features", "encode", MASK)
"""What an upstream has whose frontend makes frames that its encoder takes in as they are, such as those of
`ContextualUpstream` and w2v-BERT; the mask embedding may be None."""


def has_frames(upstream: Upstream) -> bool:
    """Whether an upstream is one of `PARTS`."""
    return all(hasattr(upstream, part) for part in PARTS)


def check_perturbations(upstream: Upstream, config: AdaptConfig) -> None:
    """Says so where an upstream's input can't be hidden, or its blocks not be passed by.

    Raises:
        ConfigError: with what to set.
    """
    if config.hides and not has_frames(upstream):
        raise ConfigError(
            f"'{upstream.name}' has no frames before its blocks that could be hidden: set `adapt.mask_prob` and "
            "`adapt.channel_mask_prob` to 0."
        )
    if config.layerdrop > 0 and not takes(upstream, "skipped_blocks"):
        raise ConfigError(f"The blocks of '{upstream.name}' can't be passed by: set `adapt.layerdrop` to 0.")


def takes(upstream: Upstream, argument: str) -> bool:
    """Whether an upstream's encoder has an argument of this name."""
    encoder = getattr(upstream, "encoder", None)
    return isinstance(encoder, nn.Module) and argument in inspect.signature(encoder.forward).parameters


def draw_skipped(adapted: Adapted, config: AdaptConfig, generator: torch.Generator) -> frozenset[int]:
    """Blocks that a step passes by, of those that are not frozen.

    Paper: Fan et al. 2020, arXiv:1909.11556.
    """
    if config.layerdrop == 0:
        return frozenset()
    depth = len(adapted.upstream.hidden_sizes) - 1
    drawn = sample_skipped_blocks(depth, config.layerdrop, generator=generator)
    return frozenset(block for block in drawn if block >= adapted.frozen)


@contextmanager
def perturbing(adapted: Adapted, config: AdaptConfig, generator: torch.Generator) -> Iterator[None]:
    """Within it, the encoder hears hidden frames and passes blocks by; every draw is `generator`'s."""
    if not config.hides and config.layerdrop == 0:
        yield
        return
    upstream: Any = adapted.upstream
    skipped = draw_skipped(adapted, config, generator)

    def change(encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        del encoder
        x, padding_mask, *others = args
        if config.hides:
            x = hide(x, padding_mask, config, embedding=getattr(upstream, MASK, None), generator=generator)
        if skipped:
            kwargs = {**kwargs, "skipped_blocks": skipped}
        return (x, padding_mask, *others), kwargs

    hook = upstream.encoder.register_forward_pre_hook(change, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def hide(
    x: Tensor,
    padding_mask: Tensor | None,
    config: AdaptConfig,
    *,
    embedding: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """Puts the mask embedding, or 0, in the place of spans of frames, and 0 in that of spans of channels.

    Args:
        x: (B, T, D).
        padding_mask: (B, T) bool; None = no frame is padding.
        embedding: (D,); None = 0.

    Paper: Baevski et al. 2020, sec. 4.3 and appendix B, arXiv:2006.11477, after Park et al. 2019 (SpecAugment).
    """
    B, T, D = x.shape
    if config.mask_prob > 0:
        lengths = torch.full((B,), T) if padding_mask is None else (~padding_mask).sum(dim=1).cpu()
        mask = sample_span_mask(
            lengths,
            prob=config.mask_prob,
            span=config.mask_length,
            min_spans=MIN_SPANS,
            generator=generator,
            max_length=T,
        ).to(x.device)
        shown = x.new_zeros(D) if embedding is None else embedding.to(x.dtype)
        x = torch.where(mask[:, :, None], shown, x)
    if config.channel_mask_prob > 0:
        channels = sample_span_mask(
            torch.full((B,), D),
            prob=config.channel_mask_prob,
            span=config.channel_mask_length,
            min_spans=0,
            generator=generator,
        ).to(x.device)
        x = x.masked_fill(channels[:, None, :], 0.0)
    return x
