"""The two quantizers of vq-wav2vec, made of those that the library has.

B batch, T frames, C channels, G groups, V codewords per group.
"""

import torch
from torch import Tensor, nn

from speechssl.conv_context.model import activation_function
from speechssl.errors import ConfigError
from speechssl.masked_norm import group_norm
from speechssl.quantizer.base import QuantizerOutput
from speechssl.quantizer.codebook import straight_through
from speechssl.quantizer.gumbel import GumbelQuantizer
from speechssl.quantizer.nearest_neighbour import NearestNeighbourConfig, NearestNeighbourQuantizer
from upstreams.vq_wav2vec.config import VqWav2VecConfig


class KmeansQuantizer(NearestNeighbourQuantizer):
    """Projects and normalises each group of channels, and chooses the nearest codeword.

    Paper: Baevski et al. 2019, sec. 3.2, arXiv:1910.05453.
    """

    def __init__(self, config: VqWav2VecConfig) -> None:
        channels = config.conv_channels
        if config.codebook_width not in (0, channels):
            raise ConfigError(
                f"`codebook_width` must be `conv_channels` = {channels} with k-means, but is {config.codebook_width}."
            )
        super().__init__(
            NearestNeighbourConfig(
                width=channels,
                groups=config.groups,
                entries=config.codewords,
                shared=config.shared_codebook,
                commitment=config.commitment,
            )
        )
        self.projection = nn.Conv1d(channels, channels, 1, groups=config.groups, bias=False)
        self.norm = nn.GroupNorm(config.groups, channels)

    def prepare(self, features: Tensor, frames: Tensor) -> Tensor:
        """What is compared with the codewords: (B, C, T) -> (B, C, T); `frames` are the valid ones."""
        return group_norm(self.projection(features), frames, self.norm)

    def encode(self, frames: Tensor) -> Tensor:
        """The nearest codewords, (N, C) -> (N, G) int64, by operations that exporters can follow."""
        x = frames.float().view(len(frames), self.groups, -1)  # (N, G, C/G)
        codebook = self.codebook.expand(self.groups, -1, -1).float()  # (G, V, C/G)
        # |x - e|^2 less |x|^2, which is the same for all codewords.
        return (codebook.square().sum(dim=2) - 2.0 * torch.einsum("ngd,gvd->ngv", x, codebook)).argmin(dim=2)

    def forward(self, frames: Tensor, *, generator: torch.Generator | None = None) -> QuantizerOutput:
        """See `NearestNeighbourQuantizer.forward`; in evaluation the codewords chosen get gradients too."""
        output = super().forward(frames, generator=generator)
        if self.training or not torch.is_grad_enabled():
            return output
        chosen = self._look_up(output.codes)
        quantized = straight_through(frames.float(), output.quantized) + (chosen - chosen.detach())
        return QuantizerOutput(quantized, output.codes, output.loss, output.usage, output.probability)


def make_quantizer(config: VqWav2VecConfig) -> GumbelQuantizer | KmeansQuantizer:
    """The quantizer that a config asks for.

    Raises:
        ConfigError: there is none of this name, or widths that don't fit.
    """
    width = config.codebook_width or config.conv_channels
    if width % config.groups:
        raise ConfigError(
            f"`codebook_width` must be a multiple of `groups`, but is {width} with {config.groups} groups."
        )
    if config.quantizer == "kmeans":
        return KmeansQuantizer(config)
    if config.quantizer == "gumbel":
        return GumbelQuantizer(
            config.conv_channels,
            output_width=width,
            groups=config.groups,
            entries=config.codewords,
            temperature=config.temperature,
            depth=config.projection_depth,
            factor=2,
            combine_groups=config.shared_codebook,
            activation=activation_function(config.activation),
        )
    raise ConfigError(f"`quantizer` must be 'gumbel' or 'kmeans', but is '{config.quantizer}'.")
