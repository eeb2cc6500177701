"""Which hidden state each weight of an upstream first has a part in, read off the graph that torch records.

It holds for every family, whatever it calls its modules: no list of names is kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from speechssl.forward import evaluating
from speechssl.upstream import Upstream

SECONDS = 0.5
"""Of the noise that is sent through; a model's blocks don't depend on what they hear."""


def first_uses(upstream: Upstream) -> dict[str, int]:
    """The lowest hidden state that depends on each parameter; parameters that none depends on are left out."""
    names = {id(parameter): name for name, parameter in upstream.named_parameters()}
    device = next((p.device for p in upstream.parameters()), torch.device("cpu"))
    noise = 0.01 * torch.randn(1, int(SECONDS * upstream.sample_rate), generator=torch.Generator().manual_seed(0))
    found: dict[str, int] = {}
    seen: set[Any] = set()
    with evaluating(upstream), _all_trainable(upstream), torch.set_grad_enabled(True):
        states = upstream(noise.to(device)).hidden_states
        for layer in states.layers:
            for leaf in _new_leaves(states[layer], seen):
                name = names.get(id(leaf))
                if name is not None:
                    found[name] = layer
    return found


@contextmanager
def _all_trainable(module: nn.Module) -> Iterator[None]:
    before = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    module.requires_grad_(True)
    try:
        yield
    finally:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(before[name])


def _new_leaves(tensor: Tensor, seen: set[Any]) -> Iterator[Tensor]:
    """The leaves that `tensor` was computed from, through nodes of the graph that are not in `seen`."""
    waiting = [tensor.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting.extend(following for following, _ in node.next_functions)
