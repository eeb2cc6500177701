"""How the two stacks of convolutions are wired into wav2vec and vq-wav2vec.

B batch, S samples, T frames, C channels of the features, D width, L blocks.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.conv_context.config import ConvContextConfig
from speechssl.encoder.causal_conv import CausalConvConfig, CausalConvEncoder
from speechssl.errors import ConfigError
from speechssl.frontend.conv_group_norm import ConvGroupNorm
from speechssl.upstream import Upstream


class ConvContextUpstream(Upstream):
    """Frontend and context network; hidden state 0 is what enters the latter, hidden state k the output of block k.

    Paper: Schneider et al. 2019, sec. 2, arXiv:1904.05862.
    """

    def __init__(self, config: ConvContextConfig, *, feature_width: int) -> None:
        """
        Args:
            config: of the two stacks.
            feature_width: channels of what enters the context network.
        """
        activation = activation_function(config.activation)
        frontend = ConvGroupNorm(
            config.conv_channels,
            kernels=config.conv_kernels,
            strides=config.conv_strides,
            activation=activation,
            log_compression=config.log_compression,
            affine=config.norm_affine,
        )
        super().__init__(
            sample_rate=config.sample_rate,
            frame_rate=config.sample_rate / frontend.hop,
            hidden_sizes=(feature_width,) + (config.width,) * len(config.context_kernels),
        )
        self.config = config
        self.frontend = frontend
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        self.encoder = CausalConvEncoder(
            feature_width,
            CausalConvConfig(
                width=config.width,
                kernels=config.context_kernels,
                activation=activation,
                residual_scale=config.residual_scale if config.residual else None,
                zero_pad=config.zero_pad,
                bias=config.bias,
                affine=config.norm_affine,
                dropout=config.dropout,
            ),
        )

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        return self.frontend.output_lengths(lengths)

    def extract_features(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the frontend: (B, S) -> (B, C, T), and the valid frames (B,) int64."""
        return self.frontend(waveform, lengths), self.output_lengths(lengths)

    def represent(self, features: Tensor, frames: Tensor) -> Tensor:  # noqa: ARG002  # families that quantise need them
        """What the context network hears of the features, both (B, C, T)."""
        return features

    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        """See `Upstream.compute`."""
        features, frames = self.extract_features(waveform, lengths)
        heard = self.feature_dropout(self.represent(features, frames))
        return self.encoder(heard, frames, layers=layers)  # type: ignore[no-any-return]  # nn.Module returns Any

    def contextualize(self, heard: Tensor, frames: Tensor) -> Tensor:
        """The last hidden state of what the context network hears: (B, C, T) -> (B, T, D); `frames` are valid."""
        last = len(self.hidden_sizes) - 1
        state: Tensor = self.encoder(self.feature_dropout(heard), frames, layers={last})[last]
        return state

    def fingerprint_config(self) -> str:
        """The whole config: its training-only fields don't change features, but neither do they change often."""
        return repr(self.config)


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """The function of this name.

    Raises:
        ConfigError: it is neither 'relu' nor 'gelu'.
    """
    functions: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}
    if name not in functions:
        raise ConfigError(f"`activation` must be 'relu' or 'gelu', but is '{name}'.")
    return functions[name]
