"""Shapes of the wav2vec 2.0 conformer models.

Papers: Baevski et al. 2020, arXiv:2006.11477; Gulati et al. 2020 (conformer), arXiv:2005.08100; Wang et al. 2020
(fairseq S2T, whose authors trained the models), arXiv:2010.05171.
"""

from dataclasses import dataclass, replace
from typing import Literal

from speechssl.contextual.config import ContextualConfig


@dataclass(frozen=True)
class Wav2Vec2ConformerConfig(ContextualConfig):
    """wav2vec 2.0 with conformer blocks; the defaults are the published large model with relative positions."""

    conv_norm: Literal["group", "layer"] = "layer"
    conv_bias: bool = True
    normalize: bool = True
    feature_grad_mult: float = 1.0
    width: int = 1024
    depth: int = 24
    heads: int = 16
    ffn_width: int = 4096
    pre_norm: bool = True
    """Always: a conformer block has its norms inside, and the encoder one after the last block."""
    pos_kernel: int = 128
    """Of a positional convolution that other toolkits' checkpoints hold and nothing uses; so is `pos_groups`."""
    dropout: float = 0.0
    attention_dropout: float = 0.0
    input_dropout: float = 0.0
    layerdrop: float = 0.0
    positions: Literal["relative", "rotary"] = "relative"
    """How attention knows the distance of frames: see `speechssl.encoder.relative_attention`."""
    rotary_base: int = 10_000
    block_kernel: int = 31
    """Frames that the convolution within a block sees."""
    conv_dropout: float = 0.0
    """After the convolution within a block."""


_RELATIVE = Wav2Vec2ConformerConfig()

PRESETS: dict[str, Wav2Vec2ConformerConfig] = {
    "wav2vec2_conformer_rel_pos_large": _RELATIVE,
    "wav2vec2_conformer_rope_large": replace(_RELATIVE, positions="rotary"),
}
"""Both are published."""

REPOSITORIES: dict[str, str] = {
    "wav2vec2_conformer_rel_pos_large": "facebook/wav2vec2-conformer-rel-pos-large",
    "wav2vec2_conformer_rope_large": "facebook/wav2vec2-conformer-rope-large",
}
"""Where the published weights are, in transformers' format."""
