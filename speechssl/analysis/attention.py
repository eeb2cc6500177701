"""The attention weights of an upstream's layers, read while it computes.

B batch, H heads, T frames, D width.
"""

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from speechssl.encoder.attention import SelfAttention, dense_bias
from speechssl.upstream import Upstream


def attention_weights(upstream: Upstream, waveform: Tensor) -> dict[int, NDArray[np.float32]]:
    """Mean over the heads of each layer's attention weights, (T, T): rows are queries and sum to 1.

    Args:
        waveform: (S,) at the upstream's sample rate.

    Returns:
        layer -> weights, from 1 on; empty where the upstream has no `SelfAttention`, as conformers and recurrent
        networks have none.
    """
    modules = [m for m in upstream.modules() if isinstance(m, SelfAttention)]
    found: dict[int, NDArray[np.float32]] = {}
    hooks = [m.register_forward_pre_hook(_reader(found, k + 1), with_kwargs=True) for k, m in enumerate(modules)]
    device = next(upstream.parameters(), torch.zeros(0)).device
    try:
        with torch.inference_mode():
            upstream(waveform[None].to(device), torch.tensor([len(waveform)], device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return dict(sorted(found.items()))


def _reader(found: dict[int, NDArray[np.float32]], layer: int) -> Any:
    def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(("x", "attended", "positions"), args, strict=False)) | kwargs
        weights = weights_of(cast(SelfAttention, module), given["x"], given.get("attended"), given.get("positions"))
        found[layer] = weights.mean(dim=(0, 1)).float().cpu().numpy()

    return read


def weights_of(module: SelfAttention, x: Tensor, attended: Tensor | None, positions: Tensor | None) -> Tensor:
    """What self-attention weighs values with, (B, H, T, T); arguments as its `forward` takes them."""
    B, T, D = x.shape
    qkv = module.qkv(x).view(B, T, 3, module.heads, D // module.heads)
    query, key, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, D/H)
    scores = query @ key.transpose(2, 3) * (D // module.heads) ** -0.5
    if attended is not None and attended.is_floating_point():
        scores = scores + attended[..., :T]
    elif attended is not None:
        scores = scores.masked_fill(~attended, -torch.inf)
    if positions is not None:  # for keys that run backwards
        heard = qkv[:, :, 0].reshape(B, T, D) if module.gate_hears_query else x
        gate = query.new_ones(1, 1, 1, 1) if module.gate is None else module.gate(heard)
        bias = dense_bias(gate.expand(B, module.heads, T, 1), positions.to(query.dtype), None)
        scores = scores + bias.flip(3)
    weights: Tensor = scores.softmax(dim=3)
    return weights
