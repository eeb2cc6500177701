"""How waveforms become the input of transformers' models, and their tokens frames in time.

B batch, S samples, T frames, N tokens, D width.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechssl.errors import SpeechsslError

SEARCHED = 2.0
"""Seconds within which a model must give three frames."""


@dataclass(frozen=True)
class Layout:
    """How the frames of a model lie in time."""

    first: int
    """Samples that the first frame takes; less than `least` where the model pads the edges of an utterance."""
    hop: int
    """Samples from one frame to the next."""
    least: int
    """Samples of the shortest utterance that the model takes."""
    window: int | None = None
    """Samples that the model hears at once, padded where there are fewer; None = as many as there are."""
    prefix: int = 0
    """Tokens before those of the frames."""
    bands: int = 1
    """Tokens per frame, band by band: all frames of the lowest, then those of the next. A frame is their mean."""

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        frames = (torch.div(lengths - self.first, self.hop, rounding_mode="floor") + 1).clamp(min=0)
        return torch.where(lengths < self.least, 0, frames)

    def split(self, samples: int) -> list[tuple[int, int]]:
        """(begin, end) in samples of each window with a frame in it."""
        if self.window is None:
            return [(0, samples)]
        edges = range(0, samples, self.window)
        return [(b, min(b + self.window, samples)) for b in edges if samples - b >= self.least]

    def frames(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, T, D)."""
        tokens = tokens[:, self.prefix :]
        return tokens.view(tokens.size(0), self.bands, -1, tokens.size(2)).mean(dim=1) if self.bands > 1 else tokens


def prepare(extractor: Any, waveform: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
    """Runs transformers' feature extractor on one utterance.

    Args:
        extractor: a feature extractor of transformers.
        waveform: (S,) float32 on the CPU.
        wanted: arguments that the model takes.

    Returns:
        The model's arguments, each with a first dimension of 1.
    """
    # As a list of one: a bare array of one utterance is taken for a batch by some extractors.
    made = extractor([waveform.numpy()], sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return {key: value for key, value in made.items() if key in wanted}


def find_layout(extractor: Any, theirs: Any, probe: Callable[[int], int]) -> Layout:
    """Finds out how the frames of a model lie in time.

    Models of fixed windows (Whisper's 30 s, the spectrogram transformer's 10.24 s) say it in their settings. Of all
    others the frames are counted on zeros of some lengths (`probe`), which tells `first`, `hop` and `least`; whatever
    convolutions, strides and stacked frames a model has, floor((n - first) / hop) + 1 frames come out.

    Args:
        extractor: a feature extractor of transformers.
        theirs: the model's config.
        probe: samples -> valid frames of that many zeros.

    Raises:
        SpeechsslError: the frames don't follow from the length in this way.
    """
    if theirs.model_type == "audio-spectrogram-transformer":
        return _patch_layout(extractor, theirs)
    if hasattr(extractor, "n_samples") and hasattr(theirs, "max_source_positions"):
        hop = extractor.n_samples // theirs.max_source_positions
        return Layout(first=hop, hop=hop, least=hop, window=hop * theirs.max_source_positions)
    longest = int(SEARCHED * extractor.sampling_rate)
    with np.errstate(all="ignore"):
        enough = probe(longest) >= 3
    if not enough:
        raise SpeechsslError(
            f"A model of type '{theirs.model_type}' gives no sequence of frames in {SEARCHED:g} s: not supported."
        )
    count = partial(_count, probe)
    least, second, third = (_smallest(count, wanted, longest) for wanted in (1, 2, 3))
    layout = Layout(first=2 * second - third, hop=third - second, least=least)
    edge = layout.first + 5 * layout.hop
    for samples in (least, edge - 1, edge, edge + 13 * layout.hop // 2):
        if count(samples) != int(layout.output_lengths(torch.tensor(samples))):
            raise SpeechsslError(
                f"A model of type '{theirs.model_type}' gives {count(samples)} frames for {samples} samples, which "
                f"does not follow from {layout.first} for the first and {layout.hop} for each other: not supported."
            )
    return layout


def _count(probe: Callable[[int], int], samples: int) -> int:
    """`probe`, or 0 for what torch, numpy and transformers say to an input that is shorter than a kernel."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):  # variances of one frame, or of zeros
            warnings.simplefilter("ignore", RuntimeWarning)
            return probe(samples)
    except (RuntimeError, ValueError, IndexError, ZeroDivisionError, AssertionError):
        return 0


def _patch_layout(extractor: Any, theirs: Any) -> Layout:
    """Patches of a spectrogram of fixed length; the two tokens before them are of the whole clip."""
    bands = (theirs.num_mel_bins - theirs.patch_size) // theirs.frequency_stride + 1
    patches = (theirs.max_length - theirs.patch_size) // theirs.time_stride + 1
    hop = theirs.time_stride * extractor.sampling_rate // 100  # mel frames are 10 ms apart
    return Layout(first=hop, hop=hop, least=hop, window=patches * hop, prefix=2, bands=bands)


def _smallest(count: Callable[[int], int], wanted: int, most: int) -> int:
    """The smallest n in 1..most whose `count`, which grows with n, is `wanted` or more; short ones are tried first."""
    upper = 1
    while upper < most and count(upper) < wanted:
        upper *= 2
    lower, upper = upper // 2, min(upper, most)
    while upper - lower > 1:
        middle = (lower + upper) // 2
        lower, upper = (lower, middle) if count(middle) >= wanted else (middle, upper)
    return upper
