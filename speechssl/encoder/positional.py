"""Relative positions by grouped convolutions.

B batch, T frames, D width.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from speechssl.conv import channels_last, conv_over_time
from speechssl.errors import ConfigError


class ConvPositionalEmbedding(nn.Module):
    """Adds positions as a wide grouped convolution over time: weight norm over the kernel axis, same length, GELU.

    Paper: Baevski et al. 2020, sec. 2, arXiv:2006.11477; initialised as fairseq does.
    """

    def __init__(self, width: int, *, kernel: int, groups: int) -> None:
        super().__init__()
        _check_groups(width, groups)
        self.kernel, self.groups = kernel, groups
        self._kept: tuple[list[Any], Tensor] | None = None
        conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
        nn.init.normal_(conv.weight, mean=0.0, std=math.sqrt(4.0 / (kernel * width)))
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        self.conv = weight_norm(conv, name="weight", dim=2)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:  # noqa: ARG002  # as that of the stack
        """Returns the embedding to be added to `x`; both (B, T, D). Padded frames of `x` must be 0."""
        y = conv_over_time(x, self._weight(), self.conv.bias, padding=self.kernel // 2, groups=self.groups)
        return F.gelu(y[:, : x.size(1)])  # an even kernel gives one frame too many, at the end

    def _weight(self) -> Tensor:
        """(D, D / groups, K), normalised; without gradients it is kept until the parameters change."""
        parameters = list(self.conv.parameters())
        if torch.is_grad_enabled() or any(p.is_inference() for p in parameters):
            return self.conv.weight  # type: ignore[no-any-return]  # what parametrizations add is untyped
        state = [(p.data_ptr(), p._version, p.dtype, p.device) for p in parameters]
        if self._kept is None or self._kept[0] != state:
            self._kept = state, channels_last(self.conv.weight)
        return self._kept[1]


class StackedConvPositionalEmbedding(nn.Module):
    """Adds positions as several narrower convolutions, each with a layer norm without weights and a GELU.

    Padded frames are zeroed before each convolution, so that what one of them makes of the padding reaches no valid
    frame through the next; fairseq and transformers let it.

    Paper: Baevski et al. 2022 (data2vec), sec. 4.2, arXiv:2202.03555.
    """

    def __init__(self, width: int, *, kernel: int, groups: int, depth: int) -> None:
        """
        Args:
            kernel: frames that each convolution sees.
            depth: convolutions.
        """
        super().__init__()
        _check_groups(width, groups)
        self.width, self.kernel, self.groups = width, kernel, groups
        self.convs = nn.ModuleList(
            nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups) for _ in range(depth)
        )

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Returns the embedding to be added to `x`.

        Args:
            x: (B, T, D), 0 at padded frames.
            padding_mask: (B, T) bool; None = no frame is padding.

        Returns:
            (B, T, D), 0 at padded frames.
        """
        y = x
        for conv in self.convs:
            weight, bias = cast(Tensor, conv.weight), cast(Tensor, conv.bias)  # ModuleList forgets their type
            y = conv_over_time(y, weight, bias, padding=self.kernel // 2, groups=self.groups)[:, : x.size(1)]
            y = F.gelu(F.layer_norm(y, (self.width,)))  # (B, T, D)
            if padding_mask is not None:
                y = y.masked_fill(padding_mask[:, :, None], 0.0)
        return y


def _check_groups(width: int, groups: int) -> None:
    if width % groups:
        raise ConfigError(f"`width` must be a multiple of `pos_groups`, but is {width} with {groups} groups.")
