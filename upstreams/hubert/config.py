"""Shapes of the HuBERT models.

Paper: Hsu et al. 2021, table 1, arXiv:2106.07447.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class HubertConfig:
    """A HuBERT model; the defaults are the published base model."""

    frontend: Literal["conv_waveform", "log_mel"] = "conv_waveform"
    """What the encoder hears: learned convolutions on the waveform, or stacked log-mel frames (made for a CPU)."""
    conv_channels: int = 512
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    """Per layer, in samples of the layer's input."""
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_norm: Literal["group", "layer"] = "group"
    conv_bias: bool = False
    num_mel_bins: int = 80
    """Of the log_mel frontend."""
    stack: int = 2
    """Frames of 10 ms that the log_mel frontend joins into one."""
    normalize: bool = False
    """Each waveform to zero mean and unit variance first."""
    feature_grad_mult: float = 0.1
    """Scale of the gradient that reaches the frontend."""
    width: int = 768
    depth: int = 12
    heads: int = 12
    ffn_width: int = 3072
    pre_norm: bool = False
    pos_kernel: int = 128
    """Frames."""
    pos_groups: int = 16
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    input_dropout: float = 0.1
    layerdrop: float = 0.05
    """Probability that a training step passes a block by."""


PRESETS: dict[str, HubertConfig] = {
    "hubert_tiny": HubertConfig(
        frontend="log_mel",
        feature_grad_mult=1.0,
        width=256,
        depth=6,
        heads=4,
        ffn_width=1024,
        pos_kernel=31,
        dropout=0.0,
        attention_dropout=0.0,
        input_dropout=0.0,
        layerdrop=0.0,
    ),
    "hubert_base": HubertConfig(),
    "hubert_large": HubertConfig(
        conv_norm="layer",
        normalize=True,
        feature_grad_mult=1.0,
        width=1024,
        depth=24,
        heads=16,
        ffn_width=4096,
        pre_norm=True,
        dropout=0.0,
        attention_dropout=0.0,
        input_dropout=0.0,
        layerdrop=0.0,
    ),
    "hubert_xlarge": HubertConfig(
        conv_norm="layer",
        normalize=True,
        feature_grad_mult=1.0,
        width=1280,
        depth=48,
        heads=16,
        ffn_width=5120,
        pre_norm=True,
        dropout=0.0,
        attention_dropout=0.0,
        input_dropout=0.0,
        layerdrop=0.0,
    ),
}
"""tiny is our own; base, large and xlarge are published."""

REPOSITORIES: dict[str, str] = {
    "hubert_base": "facebook/hubert-base-ls960",
    "hubert_large": "facebook/hubert-large-ll60k",
    "hubert_xlarge": "facebook/hubert-xlarge-ll60k",
}
"""Where the published weights are, in transformers' format."""
