"""The two quantizers of vq-wav2vec, as they choose in evaluation.

Where gradients are asked for, they pass through the choice as if it were soft (straight through), and the codewords get
those of the codewords chosen; the values stay the same bit for bit.
B batch, T frames, C channels, G groups, V codewords per group.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from speechssl.conv_context.model import activation_function
from speechssl.errors import ConfigError
from speechssl.masked_norm import group_norm
from upstreams.vq_wav2vec.config import VqWav2VecConfig


class GumbelQuantizer(nn.Module):
    """Chooses the codeword with the highest logit.

    Paper: Baevski et al. 2019, sec. 3.1, arXiv:1910.05453.
    """

    def __init__(self, config: VqWav2VecConfig) -> None:
        super().__init__()
        self.groups = config.groups
        self.activation = activation_function(config.activation)
        self.codebook = nn.Parameter(torch.rand(_codebook_shape(config)))
        channels, logits = config.conv_channels, config.groups * config.codewords
        sizes = [channels] + [2 * channels] * (config.projection_depth - 1) + [logits]
        self.projection = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002  # the other needs them
        """(B, C, T) -> quantised features (B, width, T) and codes (B, T, G) int64."""
        x = features.transpose(1, 2)  # (B, T, C)
        for index, layer in enumerate(self.projection):
            x = layer(x if index == 0 else self.activation(x))
        logits = x.view(*x.shape[:2], self.groups, -1)  # (B, T, G, V)
        codes = logits.argmax(dim=3)
        quantized = look_up(self.codebook, codes)
        if torch.is_grad_enabled():
            soft = logits.float().softmax(dim=3).to(logits.dtype)
            codebook = self.codebook.expand(self.groups, -1, -1)
            quantized = quantized + torch.einsum("btgv,gvd->btgd", soft - soft.detach(), codebook)
        return quantized.flatten(2).transpose(1, 2), codes


class KmeansQuantizer(nn.Module):
    """Projects and normalises each group of channels, and chooses the nearest codeword.

    Paper: Baevski et al. 2019, sec. 3.2, arXiv:1910.05453.
    """

    def __init__(self, config: VqWav2VecConfig) -> None:
        super().__init__()
        channels = config.conv_channels
        if config.codebook_width not in (0, channels):
            raise ConfigError(
                f"`codebook_width` must be `conv_channels` = {channels} with k-means, but is {config.codebook_width}."
            )
        self.groups = config.groups
        self.codebook = nn.Parameter(0.01 * torch.randn(_codebook_shape(config)))
        self.projection = nn.Conv1d(channels, channels, 1, groups=config.groups, bias=False)
        self.norm = nn.GroupNorm(config.groups, channels)

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, T) -> quantised features (B, C, T) and codes (B, T, G) int64; `frames` are the valid ones."""
        x = group_norm(self.projection(features), frames, self.norm).transpose(1, 2)  # (B, T, C)
        x = x.reshape(*x.shape[:2], self.groups, -1)  # (B, T, G, C/G)
        codebook = self.codebook.expand(self.groups, -1, -1).float()  # (G, V, C/G)
        # |x - e|^2 less |x|^2, which is the same for all codewords.
        distance = codebook.square().sum(dim=2) - 2.0 * torch.einsum("btgd,gvd->btgv", x.float(), codebook)
        codes = distance.argmin(dim=3)
        quantized = look_up(self.codebook, codes)
        if torch.is_grad_enabled():
            quantized = quantized + (x - x.detach())
        return quantized.flatten(2).transpose(1, 2), codes


def look_up(codebook: Tensor, codes: Tensor) -> Tensor:
    """(G or 1, V, *) and (B, T, G) -> codewords (B, T, G, *)."""
    group = torch.arange(codes.size(2), device=codes.device) % codebook.size(0)
    return codebook[group, codes]


def _codebook_shape(config: VqWav2VecConfig) -> tuple[int, int, int]:
    """Groups (1 if they share their codewords), codewords, channels of each."""
    width = config.codebook_width or config.conv_channels
    if width % config.groups:
        raise ConfigError(
            f"`codebook_width` must be a multiple of `groups`, but is {width} with {config.groups} groups."
        )
    return 1 if config.shared_codebook else config.groups, config.codewords, width // config.groups
