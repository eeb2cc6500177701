"""A transformer block from its definition, with loops over heads, and what adaptation adds to it.

T frames, D width, H heads, P prefix.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def slow_block(x: Tensor, block: Any, added: Mapping[str, Tensor]) -> Tensor:
    """A block with the norm after, for one utterance (T, D); `added` holds one method's weights, or nothing."""
    x = norm(x + slow_attention(x, block, added), block.attention_norm)
    hidden = x @ block.fc1.weight.T + block.fc1.bias
    hidden = hidden * 0.5 * (1.0 + torch.erf(hidden / math.sqrt(2.0)))
    fc2 = getattr(block.fc2, "base", block.fc2)
    y = hidden @ fc2.weight.T + fc2.bias
    return norm(x + bottleneck(y, added, "ffn"), block.ffn_norm)


def slow_attention(x: Tensor, block: Any, added: Mapping[str, Tensor]) -> Tensor:
    attention = block.attention
    qkv = getattr(attention.qkv, "base", attention.qkv)
    output = getattr(attention.output, "base", attention.output)
    T, D = x.shape
    width = D // attention.heads
    projected = []
    for place, name in enumerate(("query", "key", "value")):
        y = x @ qkv.weight[place * D : (place + 1) * D].T + qkv.bias[place * D : (place + 1) * D]
        if f"down_{name}" in added:
            y = y + added["scale"] * (x @ added[f"down_{name}"].T) @ added[f"up_{name}"].T
        projected.append(y)
    heads = []
    for head in range(attention.heads):
        query, key, value = (p[:, head * width : (head + 1) * width] for p in projected)
        rows = []
        for t in range(T):
            row = softmax_of(query[t], key) @ value
            if "gate" in added:
                row = row + added["gate"][head] * softmax_of(query[t], added["key"][head]) @ added["value"][head]
            rows.append(row)
        heads.append(torch.stack(rows))
    y = torch.cat(heads, dim=1) @ output.weight.T + output.bias
    return bottleneck(y, added, "attention")


def softmax_of(query: Tensor, keys: Tensor) -> Tensor:
    scores = torch.stack([(query * key).sum() / math.sqrt(len(query)) for key in keys])
    weights = (scores - scores.max()).exp()
    return weights / weights.sum()


def bottleneck(y: Tensor, added: Mapping[str, Tensor], place: str) -> Tensor:
    if f"{place}_down" not in added:
        return y
    inner = y @ added[f"{place}_down"].T + added[f"{place}_down_bias"]
    inner = inner * 0.5 * (1.0 + torch.erf(inner / math.sqrt(2.0)))
    return y + inner @ added[f"{place}_up"].T + added[f"{place}_up_bias"]


def norm(x: Tensor, layer: Any) -> Tensor:
    centred = x - x.mean(dim=1, keepdim=True)
    deviation = (centred.square().mean(dim=1, keepdim=True) + layer.eps).sqrt()
    found: Tensor = centred / deviation * layer.weight + layer.bias
    return found
