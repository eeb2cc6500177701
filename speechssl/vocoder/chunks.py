"""Synthesis of long utterances in overlapping windows that join to what one go would give.

A window is a stretch of new frames with enough of its neighbours on both sides that no sample of the stretch depends on
what lies beyond; the samples of the neighbours are dropped. So nothing has to be faded, and memory is that of a window.

Shapes: T frames, M mel bands or width of features, S samples.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from speechssl.vocoder.griffin_lim import GriffinLim
from speechssl.vocoder.hifigan import HifiGan
from speechssl.vocoder.istft import IstftVocoder

if TYPE_CHECKING:
    from speechssl.vocoder import Vocoder

WINDOW = 10.0
"""Seconds of new frames in a window."""


@dataclass(frozen=True)
class Stretch:
    """Frames `first` to `last` of an utterance, with their neighbours."""

    frames: Tensor
    """(T, M): frames `begin` and following."""
    begin: int
    first: int
    last: int


def stretches(pieces: Iterable[Tensor], *, size: int, context: int | None) -> Iterator[Stretch]:
    """Lays out the windows of an utterance whose frames come piece by piece.

    Args:
        pieces: (T of the piece, M) each, of any length.
        size: new frames per window.
        context: frames on both sides; None = all there are, in one window.
    """
    if context is None:
        whole = torch.cat(list(pieces))
        yield Stretch(whole, 0, 0, len(whole))
        return
    held: Tensor | None = None
    begin = first = 0
    for piece in pieces:
        held = piece if held is None else torch.cat([held, piece])
        while begin + len(held) >= first + size + context:
            last = first + size
            yield Stretch(held[: last + context - begin], begin, first, last)
            first, kept = last, max(last - context, 0)
            held, begin = held[kept - begin :], kept
    if held is None:
        return
    end = begin + len(held)
    while first < end:
        last, kept = min(first + size, end), max(first - context, 0)
        yield Stretch(held[kept - begin : min(last + context, end) - begin], kept, first, last)
        first = last


def context_frames(vocoder: "Vocoder") -> int | None:
    """Frames on each side of a frame that its samples depend on; None where that is not known."""
    if isinstance(vocoder, HifiGan):
        return _hifigan_context(vocoder)
    if isinstance(vocoder, IstftVocoder):
        config = vocoder.config
        reach = math.ceil(config.mel.n_fft / (2 * config.mel.hop) + 0.5)  # frames whose windows touch a sample
        return (config.kernel // 2) * (1 + config.blocks) + reach
    if isinstance(vocoder, GriffinLim):
        # Each iteration sees as far as a frame overlaps with others.
        return (vocoder.iterations + 1) * math.ceil(vocoder.mel.n_fft / vocoder.mel.hop)
    return None


def _hifigan_context(vocoder: HifiGan) -> int:
    """The reach of each convolution, in frames, summed from the waveform back to the frames."""
    config = vocoder.config
    reach = max((k // 2) * sum(d + 1 for d in config.dilations) for k in config.block_kernels)  # of a residual block
    rate = math.prod(config.rates)
    frames = 3 / rate + 3  # of the last convolution and of the first
    for factor, kernel in zip(config.rates[::-1], config.kernels[::-1], strict=True):
        frames += reach / rate
        rate //= factor
        frames += math.ceil(kernel / factor) / rate
    return math.ceil(frames)


@torch.inference_mode()
def synthesise_pieces(
    vocoder: "Vocoder", pieces: Iterable[Tensor], *, window: float | None = WINDOW
) -> Iterator[Tensor]:
    """Yields the waveform of an utterance stretch by stretch.

    Args:
        pieces: its frames, (T of the piece, M) each.
        window: seconds of each stretch; None = all in one.

    Yields:
        (S,) at `vocoder.mel.sample_rate`; joined, what `synthesise` gives of all frames.
    """
    hop = vocoder.mel.hop
    size = max(round((window or 0.0) * vocoder.mel.frame_rate), 1)
    for part in stretches(pieces, size=size, context=None if window is None else context_frames(vocoder)):
        waveform = vocoder(part.frames[None])[0]
        yield waveform[(part.first - part.begin) * hop : (part.last - part.begin) * hop].clone()
