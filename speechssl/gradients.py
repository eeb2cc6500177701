"""Gradients of a batch's loss, computed at once or in parts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechssl.types import LossOutput


@dataclass(frozen=True)
class Scored:
    """What a batch came to."""

    loss: float
    metrics: dict[str, float]


def differentiate(out: LossOutput) -> Scored:
    """Adds the gradients of a batch's mean loss to the parameters'."""
    size = out.sample_size.to(out.loss_sum.device).clamp(min=1)
    loss = out.loss_sum / size
    loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
    return Scored(float(loss.detach()), {k: float(v) / float(size) for k, v in out.metrics.items()})


def differentiate_parts(outputs: Iterable[LossOutput], parameters: Sequence[nn.Parameter]) -> Scored:
    """The same for a batch in parts, each of which is done with before the next is made; gradients must be None."""
    loss, size, metrics = 0.0, 0.0, dict[str, float]()
    for out in outputs:
        out.loss_sum.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        loss += float(out.loss_sum.detach())
        size += float(out.sample_size)
        for name, value in out.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + float(value)
    size = max(size, 1.0)
    _divide([p.grad for p in parameters if p.grad is not None], size)
    return Scored(loss / size, {name: value / size for name, value in metrics.items()})


@torch.no_grad()
def _divide(tensors: Sequence[Tensor], by: float) -> None:
    for tensor in tensors:
        tensor.div_(by)
