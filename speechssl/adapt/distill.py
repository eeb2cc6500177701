"""A smaller upstream that learns from a larger one and a task at once.

The student is the frontend and the first blocks of the teacher. Bottlenecks beside its feed-forwards make room for what
the task needs: the head hears the student with them, and the teacher's last hidden state is to be met without them.
The weight of that second loss falls to 0 by the end.

Paper: Heo et al. 2023 (OS-KDFT), arXiv:2305.17394. Settings are those of the authors' code: 64 numbers in a bottleneck,
of which a tenth is added, and a mean square error of weight 100. There, a bottleneck also adds what it heard once more,
and the student's positional convolution and closing norm begin at random; neither is done here.

B batch, T frames, D width, W bottleneck, L blocks.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.encoder.linear import Linear
from speechssl.encoder.transformer import TransformerBlock
from speechssl.errors import ConfigError
from speechssl.lengths import lengths_to_padding_mask
from speechssl.upstream import Upstream

SHARE = 0.1
"""Of what a bottleneck makes that is added."""
WEIGHT = 100.0
"""Of the distance to the teacher at the beginning."""


class Beside(nn.Module):
    """Norm, bottleneck and ReLU beside a feed-forward; begins at 0."""

    def __init__(self, width: int, *, inner: int, like: Tensor) -> None:
        """
        Args:
            width: D.
            inner: W.
            like: gives type and device.
        """
        super().__init__()
        self.on = True
        self.norm = nn.LayerNorm(width, device=like.device, dtype=like.dtype)
        self.down = Linear(width, inner, device=like.device, dtype=like.dtype)
        self.up = Linear(inner, width, device=like.device, dtype=like.dtype)
        for zeros in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zeros)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D), or 0 where it is off."""
        return SHARE * self.up(F.relu(self.down(self.norm(x)))) if self.on else x.new_zeros(())  # type: ignore[no-any-return]


def make_student(upstream: Upstream, layers: int, *, inner: int) -> None:
    """Takes all but the first `layers` blocks away, and puts bottlenecks beside the others' feed-forwards, in place.

    Raises:
        ConfigError: it has no more blocks than that, or none of the kind.
    """
    whole: Any = upstream
    blocks: Any = getattr(getattr(upstream, "encoder", None), "blocks", None)
    if not isinstance(blocks, nn.ModuleList) or not all(isinstance(block, TransformerBlock) for block in blocks):
        raise ConfigError(
            f"`adapt.method=distill` makes a student of an upstream with transformer blocks, but '{upstream.name}' has "
            "none that can be taken away: choose another."
        )
    if not 1 <= layers < len(blocks):
        raise ConfigError(
            f"`adapt.student_layers` must lie in 1..{len(blocks) - 1}, fewer than '{upstream.name}' has blocks, but "
            f"is {layers}."
        )
    whole.encoder.blocks = blocks[:layers]
    upstream.hidden_sizes = upstream.hidden_sizes[: layers + 1]
    upstream.config = replace(upstream.config, depth=layers)
    for block in whole.encoder.blocks:
        block.beside = Beside(block.fc2.out_features, inner=inner, like=block.fc2.weight)


@contextmanager
def without_bottlenecks(upstream: Upstream) -> Iterator[None]:
    """Within it, nothing stands beside the feed-forwards."""
    found = [module for module in upstream.modules() if isinstance(module, Beside)]
    for module in found:
        module.on = False
    try:
        yield
    finally:
        for module in found:
            module.on = True


def distance(states: Mapping[int, Tensor], teacher: Tensor, frames: Tensor) -> Tensor:
    """Mean square error between the student's last hidden state and the teacher's over the valid frames, scalar.

    Args:
        states: layer -> (B, T, D).
        teacher: (B, T, D).
        frames: valid frames, (B,) int64.
    """
    student = states[max(states)]
    inside = ~lengths_to_padding_mask(frames, student.size(1))[:, :, None]
    squares = (student.float() - teacher.float()).square().mean(dim=2, keepdim=True)
    return (squares * inside).sum() / frames.sum()


def distance_weight(step: int, steps: int) -> float:
    """The weight of the distance at `step` (from 1) of `steps`."""
    return WEIGHT * (steps - step + 1) / steps
