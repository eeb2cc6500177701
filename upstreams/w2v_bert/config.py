"""Shapes of the w2v-BERT models.

Papers: Chung et al. 2021, arXiv:2108.06209; Seamless Communication 2023, sec. 3.2.1 (w2v-BERT 2.0), arXiv:2312.05187.
"""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class W2vBertConfig:
    """A w2v-BERT model; the defaults are the published w2v-BERT 2.0."""

    sample_rate: int = 16_000
    """Hz."""
    num_mel_bins: int = 80
    stack: int = 2
    """Frames of 10 ms that are joined into one."""
    width: int = 1024
    depth: int = 24
    heads: int = 16
    ffn_width: int = 4096
    positions: Literal["relative", "relative_key"] = "relative_key"
    """How attention knows the distance of frames: see `speechssl.encoder.relative_attention`."""
    left_limit: int = 64
    """For 'relative_key', the largest distance to the left that is told apart, frames."""
    right_limit: int = 8
    """For 'relative_key', the largest distance to the right that is told apart, frames."""
    block_kernel: int = 31
    """Frames that the convolution within a block sees."""
    causal: bool = True
    """Whether that convolution sees past frames only."""
    block_norm: Literal["batch", "layer"] = "layer"
    """After that convolution."""
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    conv_dropout: float = 0.1
    """After the convolution within a block."""
    input_dropout: float = 0.0
    layerdrop: float = 0.1
    """Probability that a training step passes a block by."""


_FAIRSEQ2 = replace(
    W2vBertConfig(), positions="relative", causal=False, block_norm="batch", conv_dropout=0.0, layerdrop=0.0
)

PRESETS: dict[str, W2vBertConfig] = {
    "w2v_bert_2_0": W2vBertConfig(),
    "w2v_bert_300m": replace(_FAIRSEQ2, depth=12),
    "w2v_bert_600m": _FAIRSEQ2,
}
"""The published w2v-BERT 2.0, and the two architectures of fairseq2, for which no weights are published."""

REPOSITORIES: dict[str, str] = {"w2v_bert_2_0": "facebook/w2v-bert-2.0"}
"""Where the published weights are, in transformers' format."""
