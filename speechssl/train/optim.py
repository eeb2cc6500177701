"""Optimiser, learning rate and gradient scaling of pre-training."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from speechssl.train.config import PretrainConfig


def make_optimizer(parameters: Sequence[tuple[str, nn.Parameter]], config: PretrainConfig) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay, as fairseq's `adam`; one fused kernel per step."""
    spared = [p for _, p in parameters if p.dim() < 2 and not config.decay_vectors]
    decayed = [p for _, p in parameters if p.dim() >= 2 or config.decay_vectors]
    groups: list[dict[str, Any]] = [{"params": decayed}]
    if spared:
        groups.append({"params": spared, "weight_decay": 0.0})
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(step: int, config: PretrainConfig) -> float:
    """The rate of update `step` (from 1 on), after fairseq's and Noam's schedules.

    It rises linearly over the warm-up; then 'linear' and 'cosine' fall to 0 at the last step, 'tri_stage' stays for
    `hold` and falls exponentially to `final_scale`, 'inverse_sqrt' falls as 1 / sqrt(step).
    """
    warmup = round(config.warmup * config.steps)
    if step <= warmup:
        return config.learning_rate * step / warmup
    if config.schedule == "inverse_sqrt":
        return config.learning_rate * math.sqrt(max(warmup, 1) / step)
    begin = warmup + (round(config.hold * config.steps) if config.schedule == "tri_stage" else 0)
    if step <= begin:
        return config.learning_rate
    done = (step - begin) / max(config.steps - begin, 1)
    if config.schedule == "tri_stage":
        return float(config.learning_rate * config.final_scale**done)
    return config.learning_rate * (1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)


def scale_gradients(module: nn.Module, scale: Tensor, clip_norm: float) -> Tensor:
    """Multiplies all gradients by `scale` and clips them together, in one pass and without waiting for the device.

    Args:
        scale: scalar, such as the world size over the global sample size.
        clip_norm: largest norm after scaling.

    Returns:
        the norm after scaling and before clipping, scalar.
    """
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads) * scale
    factor = scale * (clip_norm / (norm + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(factor)
    return norm
