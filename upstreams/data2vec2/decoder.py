"""The decoder of data2vec 2.0, from what the encoder made of visible frames to a prediction for the hidden ones.

B batch, T frames, D width of the encoder, E width of the decoder.
"""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.conv import conv_over_time
from speechssl.errors import ConfigError


class ConvDecoder(nn.Module):
    """Convolutions with a layer norm without weights, a GELU and, where the width stays, a residual.

    Padded frames are zeroed before each convolution, so that they reach no valid frame; fairseq lets them.

    Paper: Baevski et al. 2022, sec. 3.2, arXiv:2212.07525; shapes and order as fairseq's `Decoder1d`.
    """

    def __init__(self, width: int, *, inner: int, kernel: int, groups: int, depth: int) -> None:
        """
        Args:
            width: D.
            inner: E.
            kernel: frames that each convolution sees, odd.
            depth: convolutions.
        """
        super().__init__()
        if kernel % 2 == 0 or width % groups or inner % groups:
            raise ConfigError(
                f"The decoder needs an odd kernel and widths that are multiples of {groups} groups, but got kernel "
                f"{kernel} and widths {width}, {inner}."
            )
        self.inner, self.kernel, self.groups = inner, kernel, groups
        self.convs = nn.ModuleList(
            nn.Conv1d(inner if number else width, inner, kernel, padding=kernel // 2, groups=groups)
            for number in range(depth)
        )
        self.projection = nn.Linear(inner, width)

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """All but the projection: (B, T, D), 0 at padded frames, and (B, T) bool -> (B, T, E)."""
        for conv in self.convs:
            weight, bias = cast(Tensor, conv.weight), cast(Tensor, conv.bias)  # ModuleList forgets their type
            y = conv_over_time(x, weight, bias, padding=self.kernel // 2, groups=self.groups)
            y = F.gelu(F.layer_norm(y, (self.inner,)))
            if padding_mask is not None:
                y = y.masked_fill(padding_mask[:, :, None], 0.0)
            x = x + y if x.size(2) == y.size(2) else y
        return x
