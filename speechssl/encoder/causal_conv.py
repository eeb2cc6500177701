"""The context network of wav2vec and vq-wav2vec: causal convolutions with residuals.

Hidden state 0 enters the first block, hidden state k leaves the k-th.
B batch, T frames, C channels of the input, D width, L blocks.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.masked_norm import group_norm


@dataclass(frozen=True)
class CausalConvConfig:
    """Shape of a stack of causal convolutions; the defaults are those of wav2vec large."""

    width: int = 512
    kernels: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)
    """Of each block: the current frame and those before it."""
    activation: Callable[[Tensor], Tensor] = F.relu
    """After the norm."""
    residual_scale: float | None = 0.5
    """The sum of block and residual is multiplied by its square root; None = no residual."""
    zero_pad: bool = False
    """Whether silence precedes the utterance, instead of its first frame again and again."""
    bias: bool = True
    """Of the convolutions."""
    affine: bool = True
    """Whether the norms have a gain and a bias."""
    dropout: float = 0.0
    """After the convolutions."""


class CausalConvBlock(nn.Module):
    """Left padding, convolution, group norm over the whole utterance, activation, scaled residual.

    Paper: Schneider et al. 2019, sec. 2.1 and 3.3, arXiv:1904.05862.
    """

    def __init__(self, inputs: int, kernel: int, config: CausalConvConfig) -> None:
        """
        Args:
            inputs: channels that come in; where they are not the width, the residual is projected.
            kernel: frames.
            config: of the whole stack.
        """
        super().__init__()
        self.config = config
        self.conv = nn.Conv1d(inputs, config.width, kernel, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.GroupNorm(1, config.width, affine=config.affine)
        project = config.residual_scale is not None and inputs != config.width
        self.residual = nn.Conv1d(inputs, config.width, 1, bias=False) if project else None

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        """(B, C, T) -> (B, D, T); `frames` are the valid ones, (B,) int64."""
        before = (self.conv.kernel_size[0] - 1, 0)
        y = self.conv(F.pad(x, before, mode="constant" if self.config.zero_pad else "replicate"))
        y = self.config.activation(group_norm(self.dropout(y), frames, self.norm))
        if self.config.residual_scale is None:
            return y
        residual = x if self.residual is None else self.residual(x)
        return (y + residual) * math.sqrt(self.config.residual_scale)


class CausalConvEncoder(nn.Module):
    """A stack of `CausalConvBlock`, one for each kernel."""

    def __init__(self, inputs: int, config: CausalConvConfig) -> None:
        """
        Args:
            inputs: channels C that enter the first block.
            config: of all blocks.
        """
        super().__init__()
        channels = [inputs] + [config.width] * (len(config.kernels) - 1)
        pairs = zip(channels, config.kernels, strict=True)
        self.blocks = nn.ModuleList(CausalConvBlock(count, kernel, config) for count, kernel in pairs)

    def forward(self, x: Tensor, frames: Tensor, *, layers: Iterable[int]) -> dict[int, Tensor]:
        """Encodes, and stops at the deepest layer asked for.

        Args:
            x: (B, C, T).
            frames: valid ones, (B,) int64, at least 1.
            layers: wanted hidden states, within 0..L.

        Returns:
            layer -> (B, T, C) or (B, T, D); frames beyond the valid ones hold arbitrary finite numbers.
        """
        wanted = frozenset(layers)
        states = {0: x} if 0 in wanted else {}
        for index, block in enumerate(self.blocks[: max(wanted, default=0)]):
            x = block(x, frames)
            if index + 1 in wanted:
                states[index + 1] = x
        return {layer: state.transpose(1, 2) for layer, state in states.items()}
