"""Learned keys and values that every frame attends to, besides the frames.

Li and Liang put them into the softmax of the frames, which takes weight from the frames whatever the prefix holds, so
that the model is another one from the first step. Here the prefix has a softmax of its own, and what it gives is added
through a gate per head that begins at 0.

B batch, T frames, D width, H heads, P prefix.
Paper: Li and Liang 2021, sec. 4, arXiv:2101.00190; the gate as Zhang et al. 2023 (LLaMA-Adapter), arXiv:2303.16199.
"""

import torch
from torch import Tensor, nn

from speechssl.adapt.blocks import Block

INITIAL = 0.02
"""Deviation of the values at the beginning; those of the keys have 1, as normed states come to."""


class Prefix(nn.Module):
    """What `SelfAttention` and `RelativeAttention` add to their output, before it is projected."""

    def __init__(self, width: int, *, heads: int, length: int, like: Tensor) -> None:
        """
        Args:
            width: D.
            heads: H.
            length: P.
            like: gives type and device.
        """
        super().__init__()
        self.key = nn.Parameter(like.new_empty(heads, length, width // heads).normal_())  # (H, P, D/H)
        self.value = nn.Parameter(like.new_empty(heads, length, width // heads).normal_(std=INITIAL))  # (H, P, D/H)
        self.gate = nn.Parameter(like.new_zeros(heads, 1, 1))

    def forward(self, query: Tensor) -> Tensor:
        """(B, H, T, D/H) -> (B, H, T, D/H)."""
        scaled: Tensor = query * query.size(3) ** -0.5
        weights = torch.softmax(scaled @ self.key.transpose(1, 2).to(query.dtype), dim=3)  # (B, H, T, P)
        return self.gate * (weights @ self.value.to(weights.dtype))


def insert_prefix(block: Block, *, length: int) -> list[nn.Parameter]:
    """Changes a block in place; returns what is to be trained."""
    attention = block.attention
    attention.prefix = Prefix(block.width, heads=attention.heads, length=length, like=attention.output.weight)
    return list(attention.prefix.parameters())
