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
        module: its gradients may be sharded; then every process must call this.
        scale: scalar, such as the world size over the global sample size.
        clip_norm: largest norm after scaling.

    Returns:
        the norm after scaling and before clipping, scalar.
    """
    grads: list[Any] = [p.grad for p in module.parameters() if p.grad is not None]
    total: Any = torch.nn.utils.get_total_norm(grads)
    sharded = hasattr(total, "full_tensor")
    norm: Tensor = (total.full_tensor() if sharded else total) * scale
    factor = scale * (clip_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([g.to_local() if sharded else g for g in grads], factor)
    return norm


def fill_gradients(module: nn.Module) -> None:
    """Gives weights that no micro-batch used a gradient of zero, as fairseq does: whether a weight decays must not
    depend on how many processes share the micro-batches."""
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
