"""The convolutional waveform encoder of wav2vec and vq-wav2vec.

Unpadded convolutions, each normalised over all channels and all frames of the utterance at once: 160 samples per frame,
465 samples of receptive field at 16 kHz in the published models.
B batch, S samples, T frames, C channels.
"""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.lengths import conv_output_lengths
from speechssl.masked_norm import group_norm


class ConvGroupNorm(nn.Module):
    """Convolution, group norm with one group, and activation per layer, then the logarithm of the magnitude.

    Paper: Schneider et al. 2019, sec. 2.1, arXiv:1904.05862.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernels: Sequence[int],
        strides: Sequence[int],
        activation: Callable[[Tensor], Tensor],
        log_compression: bool,
        affine: bool = True,
    ) -> None:
        """
        Args:
            channels: width C of every layer.
            kernels: of each layer, samples of its input.
            strides: of each layer, samples of its input.
            activation: of each layer.
            log_compression: whether what comes out is log(1 + |x|).
            affine: whether the norms have a gain and a bias.
        """
        super().__init__()
        if len(kernels) != len(strides):
            raise ConfigError(f"`kernels` and `strides` must be equally long, but are {kernels} and {strides}.")
        self.layers = list(zip(kernels, strides, strict=True))
        self.hop = math.prod(strides)  # samples from one frame to the next
        self.activation = activation
        self.log_compression = log_compression
        inputs = [1] + [channels] * (len(kernels) - 1)
        self.convs = nn.ModuleList(
            nn.Conv1d(i, channels, kernel, stride=stride, bias=False)
            for i, (kernel, stride) in zip(inputs, self.layers, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, channels, affine=affine) for _ in kernels)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        return conv_output_lengths(lengths, self.layers)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) -> (B, C, T); frames beyond `output_lengths(lengths)` hold arbitrary finite numbers."""
        x = waveform[:, None, :].to(next(self.parameters()).dtype)  # (B, 1, S)
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            valid = conv_output_lengths(lengths, self.layers[: index + 1])
            x = self.activation(group_norm(conv(x), valid, norm))  # type: ignore[arg-type]  # these are GroupNorm
        return x.abs().log1p() if self.log_compression else x
