"""Adapters: two bottlenecks per block, each with a residual, that begin as the identity.

D width, W bottleneck.
Paper: Houlsby et al. 2019, sec. 2.1, arXiv:1902.00751; GELU as in the authors' code.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.adapt.blocks import Block
from speechssl.encoder.linear import Linear

INITIAL = 1e-3
"""Deviation of the first weights, as in the authors' code; here the last ones begin at 0, and not near it."""


class Bottleneck(nn.Module):
    """x + W_up GELU(W_down x)."""

    def __init__(self, width: int, *, inner: int, like: Tensor) -> None:
        """
        Args:
            width: D.
            inner: W.
            like: gives type and device.
        """
        super().__init__()
        self.down = Linear(width, inner, device=like.device, dtype=like.dtype)
        self.up = Linear(inner, width, device=like.device, dtype=like.dtype)
        nn.init.trunc_normal_(self.down.weight, std=INITIAL, a=-2 * INITIAL, b=2 * INITIAL)
        for zeros in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zeros)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return x + self.up(F.gelu(self.down(x)))  # type: ignore[no-any-return]  # nn.Module returns Any


class AdaptedLinear(nn.Sequential):
    """A layer and the bottleneck behind it, in the place of the layer."""

    def __init__(self, base: nn.Module, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.base = base
        self.bottleneck = bottleneck


def insert_adapters(block: Block, *, inner: int, norms: bool) -> list[nn.Parameter]:
    """Puts a bottleneck behind attention and one behind the (last) feed-forward, before their residuals.

    Args:
        inner: W.
        norms: whether the block's layer norms are to be trained too.

    Returns:
        what is to be trained.
    """
    like = block.attention.output.weight
    attention = Bottleneck(block.width, inner=inner, like=like)
    feed_forward = Bottleneck(block.width, inner=inner, like=like)
    block.attention.output = AdaptedLinear(block.attention.output, attention)  # type: ignore[assignment]  # stands in
    block.feed_forward.fc2 = AdaptedLinear(block.feed_forward.fc2, feed_forward)  # type: ignore[arg-type]
    trained = [*attention.parameters(), *feed_forward.parameters()]
    if norms:
        layers = [module for module in block.module.modules() if isinstance(module, nn.LayerNorm)]
        trained += [parameter for layer in layers for parameter in layer.parameters()]
    return trained
