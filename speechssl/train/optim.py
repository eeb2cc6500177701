"""Optimiser, learning rate and gradient scaling of pre-training."""

import torch
from torch import Tensor, nn

from speechssl.train.config import PretrainConfig


def make_optimizer(module: nn.Module, config: PretrainConfig) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay on all weights, as fairseq's `adam`; one fused kernel per step."""
    return torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(step: int, config: PretrainConfig) -> float:
    """The rate of update `step` (from 1 on): linear warm-up, then linear decay to 0, as fairseq's polynomial decay."""
    warmup = round(config.warmup * config.steps)
    if step <= warmup:
        return config.learning_rate * step / warmup
    return config.learning_rate * (config.steps - step) / max(config.steps - warmup, 1)


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
