"""Convolutions that see around the middle of their reach, but not it.

B batch, T frames, C channels of the input, D width, L blocks.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.encoder.batch_norm import FrameBatchNorm
from speechssl.errors import ConfigError

REACH = 1
"""Frames that each block sees on either side."""


@dataclass(frozen=True)
class MaskedConvConfig:
    """Shape of an NPC encoder; the defaults are the published ones."""

    width: int = 512
    depth: int = 4
    kernel: int = 15
    """Frames that each masked convolution reaches over, odd."""
    mask_size: int = 5
    """Frames in the middle of which nothing is seen, odd."""
    dropout: float = 0.1
    residual: bool = True
    batch_norm: bool = True
    activation: str = "relu"
    """'relu' or 'tanh'."""
    cross_layer: bool = True
    """Whether all blocks are seen through the mask, not the last one alone."""


class ConvBlock(nn.Module):
    """Convolution over 3 frames, activation, dense layer, dropout, residual, activation.

    Paper: Liu et al. 2021 (NPC), sec. 2.2 and fig. 1, arXiv:2011.00406.
    """

    def __init__(self, inputs: int, config: MaskedConvConfig, *, residual: bool) -> None:
        super().__init__()
        width, norm = config.width, config.batch_norm
        self.activation = _activation(config.activation)
        self.residual = residual
        # A bias before a batch norm would do nothing, and get nothing but rounding errors as gradients.
        self.conv = nn.Conv1d(inputs, width, 2 * REACH + 1, padding=REACH, bias=not norm)
        self.linear = nn.Conv1d(width, width, 1, bias=not norm)
        self.conv_norm = FrameBatchNorm(width) if norm else None
        self.linear_norm = FrameBatchNorm(width) if norm else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, C, T) that is 0 at padding (B, T) bool -> (B, D, T), of which the same holds."""
        y = self.conv(x)
        y = self.activation(y if self.conv_norm is None else self.conv_norm(y, padding_mask))
        y = self.linear(y)
        y = self.dropout(y if self.linear_norm is None else self.linear_norm(y, padding_mask))
        y = self.activation(x + y if self.residual else y)
        return y if padding_mask is None else y.masked_fill(padding_mask[:, None], 0.0)


class MaskedConv(nn.Module):
    """A convolution without its middle, and tanh; only what it sees has weights, the later half after the earlier."""

    def __init__(self, width: int, *, kernel: int, mask_size: int) -> None:
        super().__init__()
        if kernel % 2 == 0 or mask_size % 2 == 0 or mask_size >= kernel:
            raise ConfigError(
                f"A masked convolution needs an odd `kernel` above an odd mask, but they are {kernel} and {mask_size}: "
                "each block widens the mask by 2."
            )
        self.kernel = kernel
        self.side = (kernel - mask_size) // 2
        self.weight = nn.Parameter(torch.empty(width, width, 2 * self.side))
        self.bias = nn.Parameter(torch.empty(width))
        bound = (width * kernel) ** -0.5  # that of the whole convolution, as torch makes it
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, T) that is 0 at padding -> (B, D, T)."""
        T, side = x.size(2), self.side
        padded = F.pad(x, (self.kernel // 2, self.kernel // 2))
        size = T + side - 1
        before, after = padded[:, :, :size], padded[:, :, self.kernel - side : self.kernel - side + size]
        weight = torch.cat((self.weight[:, :, :side], self.weight[:, :, side:]), dim=1)  # (D, 2 D, side)
        return torch.tanh(F.conv1d(torch.cat((before, after), dim=1), weight, self.bias))


class MaskedSum(nn.Module):
    """The sum of what masked convolutions see of the blocks; the wider a block's own reach, the wider the mask."""

    def __init__(self, config: MaskedConvConfig) -> None:
        super().__init__()
        first = 0 if config.cross_layer else config.depth - 1
        self.first = first
        self.convs = nn.ModuleList(
            MaskedConv(config.width, kernel=config.kernel, mask_size=config.mask_size + 2 * REACH * (index + 1))
            for index in range(first, config.depth)
        )

    def forward(self, outputs: list[Tensor]) -> Tensor:
        """What the blocks made, each (B, D, T) -> (B, D, T)."""
        total = self.convs[0](outputs[self.first])
        for conv, output in zip(self.convs[1:], outputs[self.first + 1 :], strict=True):
            total = total + conv(output)
        return total  # type: ignore[no-any-return]  # nn.Module returns Any


class MaskedConvEncoder(nn.Module):
    """L convolution blocks, and above them the sum of their masked views, which counts as block L + 1.

    That sum at a frame knows nothing of the `mask_size` frames around it.

    Paper: Liu et al. 2021 (NPC), sec. 2.2, arXiv:2011.00406.
    """

    def __init__(self, inputs: int, config: MaskedConvConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ConvBlock(config.width if index else inputs, config, residual=config.residual and index > 0)
            for index in range(config.depth)
        )
        self.blocks.append(MaskedSum(config))

    def forward(self, features: Tensor, padding_mask: Tensor | None, *, layers: Iterable[int]) -> dict[int, Tensor]:
        """Encodes, and stops at the deepest layer asked for.

        Args:
            features: (B, T, C), 0 at padding.
            padding_mask: (B, T) bool; None = no frame is padding.
            layers: wanted hidden states, within 0..L + 1.

        Returns:
            layer -> (B, T, C or D), layer 0 the input.
        """
        wanted = frozenset(layers)
        states = {0: features}
        outputs: list[Tensor] = []
        x = features.transpose(1, 2)  # (B, C, T)
        for index, block in enumerate(self.blocks[: max(wanted)]):
            if index + 1 == len(self.blocks):
                x = block(outputs)
            else:
                x = block(x, padding_mask)
                outputs.append(x)
            states[index + 1] = x.transpose(1, 2)
        return {layer: states[layer] for layer in wanted}


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    known: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "tanh": torch.tanh}
    if name not in known:
        raise ConfigError(f"`activation` must be 'relu' or 'tanh', but is '{name}'.")
    return known[name]
