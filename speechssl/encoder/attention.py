"""Multi-head self-attention.

B batch, T frames, D width, H heads.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.encoder.attention_training import attend_with_gradients
from speechssl.encoder.dropout import dropout as drop
from speechssl.encoder.linear import Linear
from speechssl.encoder.relative_bias import PositionGate
from speechssl.errors import ConfigError

CHUNK = 1 << 20
"""Attention weights per product on a CPU: few enough to stay in its cache until they are used."""

LONG = 320
"""Frames from which on a CPU computes each head alone."""


class SelfAttention(nn.Module):
    """Scaled dot-product self-attention; one product makes queries, keys and values.

    Paper: Vaswani et al. 2017, sec. 3.2, arXiv:1706.03762.
    """

    def __init__(
        self, width: int, *, heads: int, dropout: float = 0.0, gated: bool = False, gate_hears_query: bool = False
    ) -> None:
        """
        Args:
            gated: whether a `PositionGate` scales the relative position bias.
            gate_hears_query: whether it hears the queries instead of what they are made of.
        """
        super().__init__()
        if width % heads:
            raise ConfigError(f"`width` must be a multiple of `heads`, but width is {width} and heads is {heads}.")
        self.heads = heads
        self.dropout = dropout
        self.qkv = Linear(width, 3 * width)
        self.output = Linear(width, width)
        self.gate = PositionGate(width, heads=heads) if gated else None
        self.gate_hears_query = gate_hears_query
        self.prefix: nn.Module | None = None
        """From queries (B, H, T, D/H) to what is added to what they attend to, see `speechssl.adapt.prefix`."""

    def forward(self, x: Tensor, attended: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """Attends.

        Args:
            x: (B, T, D).
            attended: (B, 1, 1, T) bool, True = a frame that may be attended to; None = all, which is the fast path.
                Or a bias, see `attend`.
            positions: relative position bias, (H, T, T or more), see `RelativePositionBias`; None = there is none.

        Returns:
            (B, T, D).
        """
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.heads, D // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, D/H)
        dropout = self.dropout if self.training else 0.0
        if positions is None:
            y = attend(query, key, value, attended, dropout=dropout)
        else:
            heard = qkv[:, :, 0].reshape(B, T, D) if self.gate_hears_query else x
            gate = None if self.gate is None else self.gate(heard)
            y = attend_gated(query, key, value, attended, gate=gate, positions=positions, dropout=dropout)
        if self.prefix is not None:
            y = y + self.prefix(query)
        return self.output(y.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]  # nn.Module returns Any


def attend(query: Tensor, key: Tensor, value: Tensor, attended: Tensor | None, *, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention, the fastest way there is on a device.

    Args:
        query: (B, H, T, D/H).
        key: (B, H, T, D/H).
        value: (B, H, T, D/H).
        attended: (B, 1, 1, T) bool, True = may be attended to; or a bias, (B, H, T, T or more) float, added to the
            scaled products, -inf beyond the T keys; None = all.
        dropout: probability of dropping a weight.

    Returns:
        (B, H, T, D/H).
    """
    if attended is not None and attended.is_floating_point():
        if query.device.type == "cpu":
            return attend_biased(query, key, value, attended.to(query.dtype), dropout=dropout)
        attended = attended[..., : key.size(2)]  # rows that begin at multiples of what fused attention wants
    if query.device.type == "cpu" and (query.dtype == torch.bfloat16 or dropout > 0.0):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            hidden = None if attended is None else _additive(attended, query)
            pieces = _pieces(*query.shape[:3])
            return attend_with_gradients(query, key, value, hidden, pieces=pieces, dropout=dropout)
        return attend_in_chunks(query, key, value, attended, dropout=dropout)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attended, dropout_p=dropout)


def attend_biased(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, *, dropout: float = 0.0) -> Tensor:
    """`attend` with any bias, as plain products: on a CPU torch's fused kernel takes a few times as long to train.

    Args:
        bias: (B, H, T, T or more), added to the scaled products; -inf beyond the T keys.
    """
    B, H, T, width = query.shape
    size = bias.size(3)
    further = (0, 0, 0, size - T)
    q, k, v = (x.reshape(B * H, -1, width) for x in (query, F.pad(key, further), F.pad(value, further)))
    weights = torch.baddbmm(bias.reshape(B * H, T, size), q, k.transpose(1, 2), alpha=width**-0.5).softmax(dim=2)
    if dropout > 0.0:
        weights = drop(weights, dropout)
    return torch.bmm(weights.to(v.dtype), v).view(B, H, T, width)


def attend_gated(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attended: Tensor | None,
    *,
    gate: Tensor | None,
    positions: Tensor,
    dropout: float = 0.0,
) -> Tensor:
    """`attend` with a relative position bias: gate times bias is added to the scaled products.

    On a CPU the (B, H, T, T) of it never exist at once; on a GPU they do, in the type of the queries.

    Args:
        gate: (B, H, T, 1), one factor per query, or what broadcasts to it; None = 1.
        positions: (H, T, T or more), for keys that run backwards: see `RelativePositionBias`.
    """
    T = query.size(2)
    key, value = key.flip(2), value.flip(2)
    attended = None if attended is None else attended.flip(3)
    positions = positions.to(query.dtype)
    if gate is not None:
        gate = gate.to(query.dtype).expand(*query.shape[:3], 1)
    if query.device.type == "cpu":
        return attend_in_chunks(query, key, value, attended, dropout=dropout, gate=gate, positions=positions[:, :, :T])
    gate = query.new_ones(1, 1, 1, 1).expand(*query.shape[:3], 1) if gate is None else gate
    bias = dense_bias(gate, positions, attended)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)


def dense_bias(gate: Tensor, positions: Tensor, attended: Tensor | None) -> Tensor:
    """All of a gated bias at once, for fused attention.

    Args:
        gate: (B, H, T, 1).
        positions: (H, T, T or more).
        attended: (B, 1, 1, T) bool in the order of `positions`, True = may be attended to; None = all.

    Returns:
        (B, H, T, T), -inf where not to be attended to; rows begin at multiples of the size of those of `positions`.
    """
    T = gate.size(2)
    positions = positions.contiguous()  # else torch, seeing rows overlap, makes columns
    if attended is None:
        return (gate * positions)[..., :T]
    hidden = F.pad(_additive(attended, gate), (0, positions.size(2) - T))
    return torch.addcmul(hidden, gate, positions)[..., :T]


def attend_in_chunks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attended: Tensor | None,
    *,
    dropout: float = 0.0,
    gate: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention as plain products, a few heads, or rows of one, at a time.

    For a CPU: in bfloat16 torch's fused kernel is slower than plain products, and a bias as large as all attention
    weights would cost more than the products.

    Args:
        query: (B, H, T, D/H).
        key: (B, H, T, D/H).
        value: (B, H, T, D/H).
        attended: (B, 1, 1, T) bool, True = may be attended to; None = all.
        dropout: probability of dropping a weight.
        gate: (B, H, T, 1); None = 1.
        positions: (H, T, T), the bias that `gate` scales, in the order of `key`; None = no bias.

    Returns:
        (B, H, T, D/H).
    """
    B, H, T, width = query.shape
    if attended is None and positions is None and dropout == 0.0 and T >= LONG and not torch.is_grad_enabled():
        return _attend_head_by_head(query, key, value)
    hidden = query.new_zeros(B, 1, 1, T) if attended is None else _additive(attended, query)
    outputs = []
    for batch, heads, rows in _pieces(B, H, T):
        q = query[batch, heads, rows].flatten(0, 1)  # (N, rows, D/H)
        k, v = key[batch, heads].flatten(0, 1), value[batch, heads].flatten(0, 1)  # (N, T, D/H)
        bias = hidden[batch].expand(-1, heads.stop - heads.start, -1, -1)
        if positions is not None:
            near = positions[heads, rows]
            near = near if near.size(1) == T else near.contiguous()  # else torch, seeing rows overlap, makes columns
            bias = bias + near if gate is None else torch.addcmul(hidden[batch], gate[batch, heads, rows], near)
        weights = torch.baddbmm(bias.flatten(0, 1), q, k.transpose(1, 2), alpha=width**-0.5).softmax(dim=2)
        if dropout > 0.0:
            weights = drop(weights, dropout)
        outputs.append(torch.bmm(weights.to(v.dtype), v).view(-1, width))
    return torch.cat(outputs).view(B, H, T, width)


def _attend_head_by_head(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention to all frames, each head's result written where the next layer reads it."""
    B, H, T, width = query.shape
    query = query * width**-0.5
    y = query.new_empty(B, T, H, width)
    for b in range(B):
        for h in range(H):
            weights = torch.mm(query[b, h], key[b, h].T).softmax(dim=1)  # (T, T)
            torch.mm(weights, value[b, h], out=y[b, :, h])
    return y.transpose(1, 2)


def _pieces(B: int, H: int, T: int) -> Iterator[tuple[slice, slice, slice]]:
    """Cuts (B, H, T) into runs of at most CHUNK weights where that is possible: utterances, else heads, else rows."""
    heads = max(1, CHUNK // (T * T))
    batch, heads = max(1, heads // H), min(heads, H)
    rows = -(-T // -(-T * T // CHUNK))  # as even as they can be
    for b in range(0, B, batch):
        for h in range(0, H, heads):
            for t in range(0, T, rows):
                yield slice(b, min(b + batch, B)), slice(h, min(h + heads, H)), slice(t, t + rows)


def _additive(attended: Tensor, like: Tensor) -> Tensor:
    """0 where frames may be attended to, else -inf; (B, 1, 1, T) bool -> the same in the type of `like`."""
    return like.new_zeros(attended.shape).masked_fill(~attended, -torch.inf)
