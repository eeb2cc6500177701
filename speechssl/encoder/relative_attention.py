"""Self-attention that knows the distance between frames, in the three ways that conformers know it.

B batch, T frames, D width, H heads, P distances that are told apart.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.encoder.linear import Linear
from speechssl.errors import ConfigError

Positions = Literal["relative", "rotary", "relative_key"]
"""'relative': sinusoids of the distance, projected (Dai et al. 2019, arXiv:1901.02860); 'rotary': inputs of queries and
keys are rotated by their position (Su et al. 2021, arXiv:2104.09864); 'relative_key': a learned vector for each
distance up to a limit on either side (Shaw et al. 2018, arXiv:1803.02155)."""


class RelativeAttention(nn.Module):
    """Scaled dot-product self-attention with relative positions."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        positions: Positions,
        limits: tuple[int, int] = (64, 8),
        dropout: float = 0.0,
    ) -> None:
        """
        Args:
            width: D.
            heads: H.
            positions: see `Positions`.
            limits: for 'relative_key', the largest distances to the left and to the right that are told apart, frames.
            dropout: of attention weights.
        """
        super().__init__()
        if width % heads:
            raise ConfigError(f"`width` must be a multiple of `heads`, but width is {width} and heads is {heads}.")
        if positions not in ("relative", "rotary", "relative_key"):
            raise ConfigError(f"`positions` must be 'relative', 'rotary' or 'relative_key', but is '{positions}'.")
        self.heads = heads
        self.positions = positions
        self.limits = limits
        self.dropout = dropout
        self.prefix: nn.Module | None = None
        """From queries (B, H, T, D/H) to what is added to what they attend to, see `speechssl.adapt.prefix`."""
        self.qkv = Linear(width, 3 * width)
        self.output = Linear(width, width)
        if positions == "relative":
            self.position = Linear(width, width, bias=False)
            self.content_bias = nn.Parameter(nn.init.xavier_uniform_(torch.empty(heads, width // heads)))
            self.position_bias = nn.Parameter(nn.init.xavier_uniform_(torch.empty(heads, width // heads)))
        elif positions == "relative_key":
            self.distance = nn.Embedding(sum(limits) + 1, width // heads)

    def forward(self, x: Tensor, table: Tensor, attended: Tensor | None) -> Tensor:
        """Attends.

        Args:
            x: (B, T, D).
            table: what `position_table` makes for T.
            attended: (B, 1, 1, T) bool, True = a frame that may be attended to; None = all.

        Returns:
            (B, T, D).
        """
        B, T, D = x.shape
        query, key, value = (
            part.view(B, T, self.heads, D // self.heads).transpose(1, 2) for part in self._project(x, table)
        )  # each (B, H, T, D/H)
        asked, bias = query, attended
        if self.positions == "relative":
            bias = _masked(self._sinusoid_scores(query, table), attended)
            query = query + self.content_bias[:, None, :]
        elif self.positions == "relative_key":
            bias = _masked(self._learned_scores(query, table), attended)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        if self.prefix is not None:
            y = y + self.prefix(asked)
        return self.output(y.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]  # nn.Module returns Any

    def _project(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, T, D)."""
        if self.positions != "rotary":
            query, key, value = self.qkv(x).chunk(3, dim=2)
            return query, key, value
        D = x.size(2)
        rotated = rotate(x, table, heads=self.heads)  # before the projections, as ESPnet and fairseq have it
        query, key = F.linear(rotated, self.qkv.weight[: 2 * D], self.qkv.bias[: 2 * D]).chunk(2, dim=2)
        return query, key, F.linear(x, self.qkv.weight[2 * D :], self.qkv.bias[2 * D :])

    def _sinusoid_scores(self, query: Tensor, table: Tensor) -> Tensor:
        """(B, H, T, T): what is added for the distance, from sinusoids of T-1, ..., -(T-1) in `table`."""
        B, H, T, width = query.shape
        projected = self.position(table).view(2 * T - 1, H, width).permute(1, 2, 0)  # (H, D/H, 2T-1)
        scores = (query + self.position_bias[:, None, :]) @ projected  # (B, H, T, 2T-1)
        # Query t and key s are t - s apart, which is column T-1-t+s: each row begins one column before the last one's.
        step = 2 * T - 1
        scores = scores.contiguous().as_strided((B, H, T, T), (H * T * step, T * step, step - 1, 1), T - 1)
        return scores / math.sqrt(width)  # type: ignore[no-any-return]  # indexing a parameter of a module gives Any

    def _learned_scores(self, query: Tensor, table: Tensor) -> Tensor:
        """(B, H, T, T): what is added for the distance, of which `table` holds the numbers, (T, T)."""
        B, H, T, width = query.shape
        scores: Tensor = query @ self.distance.weight.T / math.sqrt(width)  # (B, H, T, P)
        return scores.gather(3, table.expand(B, H, T, T))


def position_table(
    positions: Positions, frames: int, width: int, *, heads: int, limits: tuple[int, int], base: float, like: Tensor
) -> Tensor:
    """What every block's attention needs to know about positions, made once for all of them.

    Args:
        positions: see `Positions`.
        frames: T.
        width: D.
        heads: H.
        limits: see `RelativeAttention`.
        base: of the rotary angles.
        like: gives type and device.

    Returns:
        'relative': (2T-1, D), the sinusoids of distances T-1 to -(T-1); 'rotary': (2, T, D/H), cosines and sines;
        'relative_key': (T, T) int64, the number of each distance. None depends on T where it is used.
    """
    frame = torch.arange(frames, device=like.device)
    if positions == "relative_key":
        distance: Tensor = frame[None, :] - frame[:, None]  # (T, T)
        return distance.clamp(-limits[0], limits[1]) + limits[0]
    if positions == "rotary":
        rates = 1.0 / base ** (torch.arange(0, width // heads, 2, device=like.device) / (width // heads))
        angles = (frame[:, None] * rates).repeat(1, 2)  # (T, D/H)
        return torch.stack((angles.cos(), angles.sin())).to(like.dtype)
    offset = torch.arange(frames - 1, -frames, -1, device=like.device, dtype=torch.float32)
    rates = torch.exp(torch.arange(0, width, 2, device=like.device) * (-math.log(10_000.0) / width))
    angles = offset[:, None] * rates  # (2T-1, D/2)
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1).to(like.dtype)  # (2T-1, D)


def rotate(x: Tensor, table: Tensor, *, heads: int) -> Tensor:
    """Turns each head's halves of (B, T, D) about each other, by angles whose cosines and sines are in `table`."""
    B, T, D = x.shape
    x = x.view(B, T, heads, D // heads)
    first, second = x.chunk(2, dim=3)
    cosine, sine = table.unsqueeze(2).unbind(0)  # each (T, 1, D/H)
    turned = torch.cat((-second, first), dim=3)
    return (x * cosine + turned * sine).view(B, T, D)


def _masked(bias: Tensor, attended: Tensor | None) -> Tensor:
    return bias if attended is None else bias.masked_fill(~attended, -torch.inf)
