"""A vision transformer written plainly, on weights by timm's names: one utterance, one head at a time."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def normal(generator: torch.Generator, *shape: int, std: float = 0.05) -> Tensor:
    return std * torch.randn(shape, generator=generator)


def block_weights(generator: torch.Generator, *, width: int, ffn_width: int, depth: int) -> dict[str, Tensor]:
    """Random weights of the blocks."""
    state = {}
    shapes = {
        "attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (ffn_width, width),
        "mlp.fc2": (width, ffn_width),
    }  # fmt: skip
    for block in range(depth):
        for name, shape in shapes.items():
            state[f"blocks.{block}.{name}.weight"] = normal(generator, *shape)
            state[f"blocks.{block}.{name}.bias"] = normal(generator, shape[0], std=0.2)
        for name in ("norm1", "norm2"):
            state |= norm_weights(generator, f"blocks.{block}.{name}", width)
    return state


def norm_weights(generator: torch.Generator, name: str, width: int) -> dict[str, Tensor]:
    return {
        f"{name}.weight": 1 + normal(generator, width, std=0.2),
        f"{name}.bias": normal(generator, width, std=0.2),
    }


def norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / torch.sqrt(centred.square().mean(dim=-1, keepdim=True) + 1e-6)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def attention(x: Tensor, state: dict[str, Tensor], at: str, heads: int) -> Tensor:
    width = x.size(1)
    query, key, value = linear(x, state, f"{at}attn.qkv").split(width, dim=1)
    size, outputs = width // heads, []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / math.sqrt(size)
        outputs.append(torch.softmax(scores, dim=-1) @ value[:, part])
    return linear(torch.cat(outputs, dim=1), state, f"{at}attn.proj")


def hidden_states(x: Tensor, state: dict[str, Tensor], *, depth: int, heads: int) -> list[Tensor]:
    """(tokens, width) before the first block -> what enters each block and leaves the last, after the norm, if any."""
    states = [x]
    for block in range(depth):
        at = f"blocks.{block}."
        x = x + attention(norm(x, state, f"{at}norm1"), state, at, heads)
        x = x + linear(F.gelu(linear(norm(x, state, f"{at}norm2"), state, f"{at}mlp.fc1")), state, f"{at}mlp.fc2")
        states.append(x)
    if "norm.weight" in state:
        states[-1] = norm(x, state, "norm")
    return states
