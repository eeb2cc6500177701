"""Low-rank updates of the projections of attention.

D width, R rank, N targets.
Paper: Hu et al. 2021, sec. 4.1, arXiv:2106.09685.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.adapt.blocks import Block
from speechssl.adapt.config import Target
from speechssl.encoder.linear import Linear

PLACES: dict[Target, int] = {"query": 0, "key": 1, "value": 2}
"""Which third of the joint projection makes which."""


class LoraProjection(nn.Module):
    """A frozen projection to queries, keys and values, to some of which scale * B A x is added; B begins at 0."""

    def __init__(self, base: Linear, *, rank: int, alpha: float, targets: Sequence[Target]) -> None:
        """
        Args:
            base: (D -> 3 D), joint as in `SelfAttention`.
            rank: R.
            alpha: scale is alpha / R.
            targets: what is updated.
        """
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        self.places = tuple(sorted(PLACES[target] for target in targets))
        width, like = base.in_features, base.weight
        # As the authors' loralib draws A.
        bound = math.sqrt(1 / width)
        self.down = nn.Parameter(like.new_empty(len(self.places), rank, width).uniform_(-bound, bound))  # (N, R, D)
        self.up = nn.Parameter(like.new_zeros(len(self.places), width, rank))  # (N, D, R)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., 3 D)."""
        y = self.base(x)
        low = F.linear(x, self.down.flatten(0, 1)).view(*x.shape[:-1], *self.down.shape[:2])  # (..., N, R)
        parts = list(y.chunk(3, dim=-1))
        for number, place in enumerate(self.places):
            parts[place] = parts[place] + self.scale * F.linear(low[..., number, :], self.up[number])
        return torch.cat(parts, dim=-1)

    @property
    def weight(self) -> Tensor:
        """(3 D, D), of the projection that this comes to; for those that take its rows apart, as rotary positions."""
        thirds = list(self.base.weight.chunk(3))
        for number, place in enumerate(self.places):
            thirds[place] = thirds[place] + self.scale * self.up[number] @ self.down[number]
        return torch.cat(thirds)

    @property
    def bias(self) -> Tensor | None:
        """(3 D,)."""
        return self.base.bias


def insert_lora(block: Block, *, rank: int, alpha: float, targets: Sequence[Target]) -> list[nn.Parameter]:
    """Changes a block in place; returns what is to be trained."""
    projection = LoraProjection(block.attention.qkv, rank=rank, alpha=alpha, targets=targets)
    block.attention.qkv = projection  # type: ignore[assignment]  # stands in for the layer it holds
    return [projection.down, projection.up]


@torch.no_grad()
def merge_lora(block: Block) -> None:
    """Adds the update to the weights and puts the plain layer back; a block without one stays as it is."""
    projection: nn.Module = block.attention.qkv
    if isinstance(projection, LoraProjection):
        projection.base.weight.copy_(projection.weight)
        block.attention.qkv = projection.base
