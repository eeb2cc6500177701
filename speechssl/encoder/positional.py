"""Relative positions by a grouped convolution.

B batch, T frames, D width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from speechssl.errors import ConfigError


class ConvPositionalEmbedding(nn.Module):
    """Adds positions as a wide grouped convolution over time: weight norm over the kernel axis, same length, GELU.

    Paper: Baevski et al. 2020, sec. 2, arXiv:2006.11477; initialised as fairseq does.
    """

    def __init__(self, width: int, *, kernel: int, groups: int) -> None:
        super().__init__()
        if width % groups:
            raise ConfigError(f"`width` must be a multiple of `pos_groups`, but is {width} with {groups} groups.")
        self.kernel = kernel
        conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
        nn.init.normal_(conv.weight, mean=0.0, std=math.sqrt(4.0 / (kernel * width)))
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        self.conv = weight_norm(conv, name="weight", dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the embedding to be added to `x`; both (B, T, D). Padded frames of `x` must be 0."""
        y = self.conv(x.transpose(1, 2))  # (B, D, T + 1 - kernel % 2)
        y = y[:, :, : x.size(1)]  # an even kernel gives one frame too many, at the end
        return torch.nn.functional.gelu(y).transpose(1, 2)  # (B, T, D)
