"""Multi-head self-attention.

B batch, T frames, D width, H heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import ConfigError

CHUNK = 1 << 19
"""Attention weights per product on a CPU: few enough to stay in its cache until they are used."""


class SelfAttention(nn.Module):
    """Scaled dot-product self-attention; one product makes queries, keys and values.

    Paper: Vaswani et al. 2017, sec. 3.2, arXiv:1706.03762.
    """

    def __init__(self, width: int, *, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"`width` must be a multiple of `heads`, but width is {width} and heads is {heads}.")
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, attended: Tensor | None) -> Tensor:
        """Attends.

        Args:
            x: (B, T, D).
            attended: (B, 1, 1, T) bool, True = a frame that may be attended to; None = all, which is the fast path.

        Returns:
            (B, T, D).
        """
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.heads, D // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, D/H)
        dropout = self.dropout if self.training else 0.0
        if x.device.type == "cpu" and query.dtype == torch.bfloat16:
            y = attend_in_chunks(query, key, value, attended, dropout=dropout)
        else:
            y = F.scaled_dot_product_attention(query, key, value, attn_mask=attended, dropout_p=dropout)
        return self.output(y.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]  # nn.Module returns Any


def attend_in_chunks(
    query: Tensor, key: Tensor, value: Tensor, attended: Tensor | None, *, dropout: float = 0.0
) -> Tensor:
    """Scaled dot-product attention as plain products, a few heads at a time.

    For bfloat16 on a CPU, where torch's fused kernel is slower than plain products.

    Args:
        query: (B, H, T, D/H).
        key: (B, H, T, D/H).
        value: (B, H, T, D/H).
        attended: (B, 1, 1, T) bool, True = may be attended to; None = all.
        dropout: probability of dropping a weight.

    Returns:
        (B, H, T, D/H).
    """
    B, H, T, width = query.shape
    bias = query.new_zeros(B, 1, 1, T)
    if attended is not None:
        bias = bias.masked_fill(~attended, -torch.inf)
    bias = bias.expand(B, H, 1, T)
    count = max(1, CHUNK // (T * T))
    chunks = zip(*(torch.split(x.flatten(0, 1), count) for x in (query, key, value, bias)), strict=True)
    outputs = []
    for q, k, v, b in chunks:
        weights = torch.baddbmm(b, q, k.transpose(1, 2), alpha=width**-0.5).softmax(dim=2)  # (count, T, T)
        if dropout > 0.0:
            weights = F.dropout(weights, dropout)
        outputs.append(torch.bmm(weights.to(v.dtype), v))
    return torch.cat(outputs).view(B, H, T, width)
