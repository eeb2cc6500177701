"""Settings of the wav2vec architecture; free of torch, so that listing presets stays fast."""

from dataclasses import dataclass, replace
from typing import Literal, TypeVar


@dataclass(frozen=True)
class ConvContextConfig:
    """A convolutional encoder and a convolutional context network; the defaults are the shape of wav2vec large."""

    sample_rate: int = 16_000
    """Hz."""
    conv_channels: int = 512
    conv_kernels: tuple[int, ...] = (10, 8, 4, 4, 4, 1, 1)
    """Per layer, in samples of the layer's input."""
    conv_strides: tuple[int, ...] = (5, 4, 2, 2, 2, 1, 1)
    log_compression: bool = True
    """Whether the features are log(1 + |x|) of what the last convolution gives."""
    width: int = 512
    context_kernels: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)
    """Of each block of the context network: the current frame and those before it."""
    residual: bool = True
    """Whether each block adds its input."""
    residual_scale: float = 0.5
    """The sum is multiplied by the square root of this."""
    zero_pad: bool = False
    """Whether the context network hears silence before the utterance, instead of its first frame again and again."""
    bias: bool = True
    """Of the convolutions of the context network."""
    norm_affine: bool = True
    """Whether the group norms have a gain and a bias."""
    activation: Literal["relu", "gelu"] = "relu"
    dropout: float = 0.0
    """In the context network."""
    feature_dropout: float = 0.0
    """Of what enters the context network."""


C = TypeVar("C", bound=ConvContextConfig)


def tiny(config: C) -> C:
    """Gives a config a shape that trains in minutes on two CPU cores, with about the weights and operations of
    `speechssl.contextual.config.tiny`: 50 Hz, and a first layer of long steps, since norms at a high rate are what
    takes a CPU's time here."""
    return replace(
        config,
        conv_channels=256,
        conv_kernels=(40, 8, 4, 4, 1),
        conv_strides=(20, 4, 2, 2, 1),
        width=256,
        context_kernels=(2, 3, 4, 5, 6, 7, 8, 9, 10),
    )
