"""Shapes of the BEATs models.

Paper: Chen et al. 2022, sec. 3.2 and 4.2, arXiv:2212.09058.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class BeatsConfig:
    """A BEATs model; the defaults are what all published models have."""

    sample_rate: int = 16_000
    """Hz."""
    num_mel_bins: int = 128
    patch_size: int = 16
    """Frames of 10 ms, and mel bands."""
    patch_bias: bool = False
    embed_width: int = 512
    """Of a patch before it is projected to `width`."""
    mean: float = 15.41663
    """Of the log energies of AudioSet, at 16-bit integers' scale."""
    deviation: float = 6.55582
    """Of the log energies of AudioSet."""
    width: int = 768
    depth: int = 12
    heads: int = 12
    ffn_width: int = 3072
    deep_norm: bool = True
    """Whether residuals are scaled by (2 depth) ** 0.25."""
    pos_kernel: int = 128
    """Patches."""
    pos_groups: int = 16
    relative_buckets: int = 320
    """Of distances, for the relative position bias; 0 = none."""
    relative_distance: int = 800
    """Patches from which on all distances share a bucket."""
    relative_gate: bool = True
    """Whether what is heard at a patch scales its relative position bias."""
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    frequency: Literal["join", "mean"] = "join"
    """How the patches of a column become a frame: side by side, from low to high frequencies, or as their mean."""


PRESETS: dict[str, BeatsConfig] = {
    "beats_iter1": BeatsConfig(),
    "beats_iter2": BeatsConfig(),
    "beats_iter3": BeatsConfig(),
    "beats_iter3_plus_as20k": BeatsConfig(),
    "beats_iter3_plus_as2m": BeatsConfig(),
}
"""They differ in the tokenizer that made the labels."""
