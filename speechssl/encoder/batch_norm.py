"""Batch norm that does not see padding, and learns the same from one process as from many.

B batch, T frames, C channels.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.objective import Reduce


class FrameBatchNorm(nn.Module):
    """Normalises each channel by statistics over all valid frames.

    Where `learning` is set and in training mode these are the micro-batch's own, and they are gathered; `end_step`
    then moves the running ones towards those of all micro-batches of all processes. In any other case the running ones
    are used, so that an utterance does not depend on its batch. In float32 whatever the type of the input.

    Paper: Ioffe and Szegedy 2015, sec. 3, arXiv:1502.03167.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        """
        Args:
            momentum: share of an update's statistics in the running ones.
        """
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.learning = False
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.gathered: Tensor | None = None
        """(3, C): frames, sums and sums of squares since the last update, of what is `mean` less."""

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, C, T), padding (B, T) bool or None -> (B, C, T) in the type of `x`."""
        if not (self.training and self.learning):
            return F.batch_norm(x, self.mean, self.variance, self.weight, self.bias, eps=self.eps)
        with torch.autocast(x.device.type, enabled=False):
            y = x.float() - self.mean[:, None]  # near 0, so that sums of squares keep their digits
            inside = (
                torch.ones_like(y[:, :1]) if padding_mask is None else (~padding_mask)[:, None].float()
            )  # (B, 1, T)
            count = inside.sum().clamp(min=1.0)
            mean = (y * inside).sum(dim=(0, 2)) / count  # (C,)
            centred = (y - mean[:, None]) * inside
            variance = centred.square().sum(dim=(0, 2)) / count
            self._gather(count, mean.detach(), variance.detach())
            scale = self.weight * torch.rsqrt(variance + self.eps)
            return (centred * scale[:, None] + self.bias[:, None]).to(x.dtype)

    def _gather(self, count: Tensor, mean: Tensor, variance: Tensor) -> None:
        sums = torch.stack((count.expand_as(mean), count * mean, count * (variance + mean.square())))
        self.gathered = sums if self.gathered is None else self.gathered + sums

    def update(self, sums: Tensor) -> None:
        """Moves the running statistics towards those of `sums`, which are as `gathered`; the variance is unbiased."""
        count, total, square = sums
        shift = total / count
        variance = (square / count - shift.square()).clamp(min=0.0) * count / (count - 1).clamp(min=1.0)
        self.mean.add_(shift, alpha=self.momentum)
        self.variance.lerp_(variance, self.momentum)
        self.gathered = None


def batch_norms(model: nn.Module) -> dict[str, FrameBatchNorm]:
    """All batch norms of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FrameBatchNorm)}


def update_batch_norms(norms: Mapping[str, FrameBatchNorm], reduce: Reduce) -> None:
    """Ends a step of training for all of them, in one collective."""
    sums = {name: norm.gathered for name, norm in norms.items() if norm.gathered is not None}
    for name, total in reduce(sums).items():
        norms[name].update(total)


def set_learning(norms: Iterable[FrameBatchNorm]) -> None:
    """Lets them learn in training mode."""
    for norm in norms:
        norm.learning = True
