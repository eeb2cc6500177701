"""The context network of wav2vec and vq-wav2vec: causal convolutions with residuals.

Hidden state 0 enters the first block, hidden state k leaves the k-th.
B batch, T frames, C channels of the input, D width, L blocks.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.masked_norm import group_norm


class CausalConvBlock(nn.Module):
    """Left padding, convolution, group norm over the whole utterance, activation, scaled residual.

    Paper: Schneider et al. 2019, sec. 2.1 and 3.3, arXiv:1904.05862.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        kernel: int,
        activation: Callable[[Tensor], Tensor],
        residual_scale: float | None,
        zero_pad: bool = False,
        bias: bool = True,
        affine: bool = True,
        dropout: float = 0.0,
    ) -> None:
        """
        Args:
            inputs: channels that come in; where they are not `width`, the residual is projected.
            width: channels D that come out.
            kernel: frames, the current one and those before it.
            activation: after the norm.
            residual_scale: sum of block and residual is multiplied by its square root; None = no residual.
            zero_pad: whether silence precedes the utterance, instead of its first frame again and again.
            bias: of the convolution.
            affine: whether the norm has a gain and a bias.
            dropout: after the convolution.
        """
        super().__init__()
        self.padding = kernel - 1
        self.pad_mode = "constant" if zero_pad else "replicate"
        self.activation = activation
        self.residual_scale = residual_scale
        self.conv = nn.Conv1d(inputs, width, kernel, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.GroupNorm(1, width, affine=affine)
        project = residual_scale is not None and inputs != width
        self.residual = nn.Conv1d(inputs, width, 1, bias=False) if project else None

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        """(B, C, T) -> (B, D, T); `frames` are the valid ones, (B,) int64."""
        y = self.dropout(self.conv(F.pad(x, (self.padding, 0), mode=self.pad_mode)))
        y = self.activation(group_norm(y, frames, self.norm))
        if self.residual_scale is None:
            return y
        residual = x if self.residual is None else self.residual(x)
        return (y + residual) * math.sqrt(self.residual_scale)


class CausalConvEncoder(nn.Module):
    """A stack of `CausalConvBlock`, one for each kernel."""

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        kernels: Sequence[int],
        activation: Callable[[Tensor], Tensor],
        residual_scale: float | None,
        zero_pad: bool = False,
        bias: bool = True,
        affine: bool = True,
        dropout: float = 0.0,
    ) -> None:
        """See `CausalConvBlock`; `kernels` are of each block, in frames."""
        super().__init__()
        self.blocks = nn.ModuleList(
            CausalConvBlock(
                inputs if index == 0 else width,
                width,
                kernel=kernel,
                activation=activation,
                residual_scale=residual_scale,
                zero_pad=zero_pad,
                bias=bias,
                affine=affine,
                dropout=dropout,
            )
            for index, kernel in enumerate(kernels)
        )

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
        for index, block in enumerate(self.blocks):
            if index >= max(wanted, default=0):
                break
            x = block(x, frames)
            if index + 1 in wanted:
                states[index + 1] = x
        return {layer: state.transpose(1, 2) for layer, state in states.items()}
