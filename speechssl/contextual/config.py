"""Settings of the wav2vec 2.0 architecture; free of torch, so that listing presets stays fast."""

from dataclasses import dataclass, replace
from typing import Literal, TypeVar


@dataclass(frozen=True)
class ContextualConfig:
    """A frontend and a transformer; the defaults are the shape of wav2vec 2.0 and HuBERT base."""

    sample_rate: int = 16_000
    """Hz."""
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
    label_rate: float | None = None
    """Hz, of the labels that it was trained to predict; None = none, or the checkpoint does not say."""
    feature_grad_mult: float = 0.1
    """Scale of the gradient that reaches the frontend."""
    feature_norm: bool = True
    """Whether what the frontend makes has a layer norm of its own before it is projected."""
    width: int = 768
    depth: int = 12
    heads: int = 12
    ffn_width: int = 3072
    pre_norm: bool = False
    pos_kernel: int = 128
    """Frames."""
    pos_groups: int = 16
    pos_depth: int = 1
    """Positional convolutions; more than one have layer norms instead of weight norm."""
    alibi: bool = False
    """Whether attention fades with the distance, by a learned scale per head."""
    relative_buckets: int = 0
    """Of distances, for a learned relative position bias on attention; 0 = none."""
    relative_distance: int = 800
    """Frames from which on all distances share a bucket."""
    relative_gate: bool = True
    """Whether what is heard at a frame scales its relative position bias."""
    adapter_width: int | None = None
    """Of the adapter after each block; None = no adapters."""
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    input_dropout: float = 0.1
    layerdrop: float = 0.05
    """Probability that a training step passes a block by."""


C = TypeVar("C", bound=ContextualConfig)


def large(config: C) -> C:
    """Gives a base config the shape of the large models: 24 wide blocks with norms before, trained without dropout."""
    return replace(
        config,
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
    )


def tiny(config: C) -> C:
    """Gives a config the shape that trains in minutes on two CPU cores: log-mel frames and six narrow blocks."""
    return replace(
        config,
        frontend="log_mel",
        feature_grad_mult=1.0,
        width=256,
        depth=6,
        heads=4,
        ffn_width=1024,
        pos_kernel=31 if config.pos_depth == 1 else 7,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        input_dropout=0.0,
        layerdrop=0.0,
    )
