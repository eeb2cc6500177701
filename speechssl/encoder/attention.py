"""Multi-head self-attention.

B batch, T frames, D width, H heads.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import ConfigError


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
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=attended, dropout_p=dropout)
        return self.output(y.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]  # nn.Module returns Any
