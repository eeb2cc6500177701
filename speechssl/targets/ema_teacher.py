"""Targets from a teacher that follows the student as an exponential moving average: data2vec and its descendants.

B batch, T frames, D width.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def ema_decay(step: int, *, start: float, end: float, ramp_steps: int) -> float:
    """The decay of update `step` (from 1 on): from `start` linearly to `end` within `ramp_steps`, then constant.

    Paper: Baevski et al. 2022, sec. 3.2, arXiv:2202.03555.
    """
    return end if step >= ramp_steps else end - (end - start) * (1 - step / ramp_steps)


class EmaTeacher(nn.Module):
    """A float32 copy of (a part of) the student that follows it; in evaluation mode always, and never trained.

    Its weights are part of the state dict. Hold it beside the student, and shard both alike where either is sharded.

    Paper: Tarvainen & Valpola 2017, sec. 3, arXiv:1703.01780; as fairseq's `EMAModule`.
    """

    def __init__(self, student: nn.Module, *, copied: Sequence[str] = ()) -> None:
        """
        Args:
            student: the part that is to be followed.
            copied: beginnings of the names of parameters that are taken as they are, without an average.
        """
        super().__init__()
        self.module = copy.deepcopy(student).float().requires_grad_(False)
        self.copied = tuple(copied)
        self.train(False)

    def train(self, mode: bool = True) -> "EmaTeacher":  # noqa: ARG002  # a teacher has one mode
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: nn.Module, decay: float) -> None:
        """Moves every parameter to decay * own + (1 - decay) * student's; buffers are copied."""
        theirs = dict(student.named_parameters())
        followed: list[tuple[Tensor, Tensor]] = []
        copied: list[tuple[Tensor, Tensor]] = []
        for name, own in self.module.named_parameters():
            (copied if name.startswith(self.copied) else followed).append((own, _as_own(theirs[name], own)))
        for pairs, weight in ((followed, 1.0 - decay), (copied, 1.0)):
            if pairs:  # with the weight 1 this copies, also where torch can't copy lists of sharded tensors
                torch._foreach_lerp_([own for own, _ in pairs], [other for _, other in pairs], weight)
        for buffer, other in zip(self.module.buffers(), student.buffers(), strict=True):
            buffer.copy_(_as_own(other, buffer))


def _as_own(other: Tensor, own: Tensor) -> Tensor:
    """The student's tensor as the teacher holds its own: of the same type, and in one piece where that is."""
    whole = other.full_tensor() if isinstance(other, DTensor) and not isinstance(own, DTensor) else other
    return whole.detach().to(own.dtype)


def instance_norm(x: Tensor, padding_mask: Tensor | None, *, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit variance of every channel of an utterance, over its valid frames alone.

    fairseq takes the mean over padded frames too (its crops have none), which would make targets depend on the batch.

    Args:
        x: (B, T, D).
        padding_mask: (B, T) bool; None = no frame is padding.

    Returns:
        (B, T, D) float32, of no meaning where there is padding.
    """
    x = x.float()
    if padding_mask is None:
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + eps)
    inside = (~padding_mask)[:, :, None].float()
    count = inside.sum(dim=1, keepdim=True)
    centred = x - (x * inside).sum(dim=1, keepdim=True) / count
    variance = (centred.square() * inside).sum(dim=1, keepdim=True) / count
    return centred * torch.rsqrt(variance + eps)


def normed_results(results: Iterable[Tensor], padding_mask: Tensor | None) -> Iterator[Tensor]:
    """`instance_norm` of each layer, (B, T, D) float32."""
    return (instance_norm(result, padding_mask) for result in results)


def average_results(results: Iterable[Tensor], padding_mask: Tensor | None) -> Tensor:
    """data2vec's target: the mean over layers of their instance-normed results.

    Args:
        results: (B, T, D) of each layer, of at least one.
        padding_mask: (B, T) bool; None = no frame is padding.

    Returns:
        (B, T, D) float32.

    Paper: Baevski et al. 2022, sec. 3.3, arXiv:2202.03555.
    """
    normed = normed_results(results, padding_mask)
    total, count = next(normed), 1
    for layer in normed:
        total, count = total.add_(layer), count + 1
    return total.div_(count)
