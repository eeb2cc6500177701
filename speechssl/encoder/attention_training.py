"""Attention with gradients on a CPU, a few heads at a time.

Left to autograd, each piece's gradient would be a tensor as large as all queries, 0 but for the piece, and what is kept
for the way back twice as much.
B batch, T frames, D width, H heads, N heads of a piece.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from speechssl.encoder.dropout import sample_kept

Piece = tuple[slice, slice, slice]
"""Of utterances, heads and rows."""


def attend_with_gradients(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, *, pieces: Iterable[Piece], dropout: float
) -> Tensor:
    """Scaled dot-product attention.

    Args:
        query: (B, H, T, D/H).
        key: (B, H, T, D/H).
        value: (B, H, T, D/H).
        hidden: what is added to the products, (B, 1, 1, T), without a gradient; None = nothing.
        pieces: what is computed at once; together they cover all.
        dropout: probability of dropping a weight.

    Returns:
        (B, H, T, D/H), the heads of a frame next to each other in memory.
    """
    y: Tensor = _Attention.apply(query, key, value, hidden, list(pieces), dropout)  # type: ignore[no-untyped-call]  # untyped in torch
    return y


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  # what apply() takes
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        hidden: Tensor | None,
        pieces: list[Piece],
        dropout: float,
    ) -> Tensor:
        B, H, T, width = query.shape
        y = query.new_empty(B, T, H, width).transpose(1, 2)
        kept: list[Tensor] = []
        ctx.factor = 1.0
        for batch, heads, rows in pieces:
            q, k, v = _cut(query, batch, heads, rows), _cut(key, batch, heads), _cut(value, batch, heads)
            products = _product(q * width**-0.5, k.transpose(1, 2))  # (N, rows, T)
            if hidden is not None:
                products = products.view(batch.stop - batch.start, -1, *products.shape[1:]).add_(hidden[batch])
            weights = products.view(len(q), -1, T).softmax(dim=2)
            kept.append(weights)
            if dropout > 0.0:
                mask, ctx.factor = sample_kept(weights.shape, dropout)
                kept.append(mask)
                weights = weights * mask
            _place(y, _product(weights, v * ctx.factor), batch, heads, rows)
        ctx.pieces, ctx.dropout = pieces, dropout
        ctx.save_for_backward(query, key, value, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        grad, stored = grads[0], iter(kept)
        B, H, T, width = query.shape
        # One tensor for the three, in the order in which one product made them.
        all_three = query.new_zeros(B, T, 3, H, width)
        to_query, to_key, to_value = all_three.permute(2, 0, 3, 1, 4).unbind(0)
        for batch, heads, rows in ctx.pieces:
            q, k, v = _cut(query, batch, heads, rows), _cut(key, batch, heads), _cut(value, batch, heads)
            g = _cut(grad, batch, heads, rows) * ctx.factor
            weights = dropped = next(stored)
            to_weights = _product(g, v.transpose(1, 2))
            if ctx.dropout > 0.0:
                mask = next(stored)
                dropped = weights * mask
                to_weights.mul_(mask)
            to_products = torch._softmax_backward_data(to_weights, weights, 2, weights.dtype)
            _add(to_value, _product(dropped.transpose(1, 2), g), batch, heads)
            _add(to_key, _product(to_products.transpose(1, 2), q * width**-0.5), batch, heads)
            _place(to_query, _product(to_products, k * width**-0.5), batch, heads, rows)
        return to_query, to_key, to_value, None, None, None


def _product(a: Tensor, b: Tensor) -> Tensor:
    """(N, *, *) @ (N, *, *); of one matrix torch takes a faster product."""
    return torch.mm(a[0], b[0])[None] if len(a) == 1 else torch.bmm(a, b)


def _cut(x: Tensor, batch: slice, heads: slice, rows: slice | None = None) -> Tensor:
    """A piece of (B, H, T, D/H) as (N, rows, D/H)."""
    return (x[batch, heads] if rows is None else x[batch, heads, rows]).flatten(0, 1)


def _place(x: Tensor, piece: Tensor, batch: slice, heads: slice, rows: slice) -> None:
    target = x[batch, heads, rows]
    target.copy_(piece.view(target.shape))


def _add(x: Tensor, piece: Tensor, batch: slice, heads: slice) -> None:
    """Several pieces may be rows of the same heads."""
    target = x[batch, heads]
    target.add_(piece.view(target.shape))
