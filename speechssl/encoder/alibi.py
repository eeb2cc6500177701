"""Relative positions as a bias on attention that grows with the distance: attention with linear biases, both ways.

T frames, H heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.encoder.relative_bias import ALIGNMENT

ROW = 32
"""Numbers that a CPU's vector holds in bfloat16; softmax takes two or three times as long where rows end otherwise."""


class LinearBias(nn.Module):
    """Distance times a fixed slope per head times a learned scale per head, the latter never below 0.

    Paper: Press et al. 2022 (ALiBi), sec. 3, arXiv:2108.12409; symmetric and with learned scales as Baevski et al. 2022
    (data2vec 2.0), sec. 3.3, arXiv:2212.07525.
    """

    slopes: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(heads))
        self.register_buffer("slopes", torch.tensor(linear_slopes(heads)), persistent=False)

    def forward(self, frames: int) -> Tensor:
        """Returns the bias of `frames` queries and as many keys, (H, T, T or more); a view.

        [h, i, k] is that of query i and key T-1-k, as `RelativePositionBias` has it.
        """
        size = -(-frames // ALIGNMENT) * ALIGNMENT
        distances = (frames - 1 - torch.arange(frames + size - 1, device=self.slopes.device)).abs()
        # In float32, since half-precision numbers can't count far.
        line = (-self._steepness()[:, None] * distances.float()).to(self.scale.dtype)  # (H, T+size-1)
        return line.unfold(1, size, 1)  # (H, T, size)

    def between(self, frames: Tensor, present: Tensor | None) -> Tensor:
        """The bias where frames were left out, by the distances that the others had.

        Args:
            frames: (B, V) int64, the place of each frame that is there.
            present: (B, V) bool, False = fills the row up; None = all are.

        Returns:
            (B, H, V, V or more) float32, to be added to the scaled products of query and key; -inf for keys that fill
            up, of which there are so many more that rows have a length that a CPU's softmax is fast with.
        """
        B, V = frames.shape
        further = -V % ROW
        if further and present is None:
            present = torch.ones_like(frames, dtype=torch.bool)
        keys = F.pad(frames, (0, further))
        distances = (frames[:, :, None] - keys[:, None, :]).abs().float()  # (B, V, V or more)
        with torch.autocast(frames.device.type, enabled=False):
            # As a product of matrices, so that the gradient of the scales is one too.
            bias = torch.matmul(-self._steepness()[:, None], distances.view(B, 1, -1)).view(B, -1, V, V + further)
        if present is None:
            return bias
        return bias.masked_fill(~F.pad(present, (0, further))[:, None, None, :], -torch.inf)

    def _steepness(self) -> Tensor:
        """(H,) float32."""
        return self.slopes.float() * self.scale.float().clamp(min=0.0)


def linear_slopes(heads: int) -> list[float]:
    """A geometric sequence from head to head: 2^(-8/H), 2^(-16/H), ..., 2^-8 where H is a power of 2.

    For other H, that of the power of 2 below, and every other one of twice that power.

    Paper: Press et al. 2022, sec. 3, arXiv:2108.12409, and its official code for other H.
    """
    power: int = 2 ** math.floor(math.log2(heads))
    own = [2.0 ** (-8.0 * (h + 1) / power) for h in range(power)]
    between = [2.0 ** (-8.0 * (h + 1) / (2 * power)) for h in range(0, 2 * power, 2)]
    return own + between[: heads - power]
