"""Relative positions as a bias on attention: bucketed distances, and a gate that the content opens.

The bias of a query and a key depends on their distance alone, so that all of it is a view into one line of numbers when
the keys run backwards: with k = frames before the last, query i and key T-1-k lie T-1-(i+k) apart.
B batch, T frames, D width, H heads.
"""

import math

import torch
from torch import Tensor, nn

ALIGNMENT = 16
"""The keys' axis of the bias is a multiple of it, since fused attention on a GPU copies masks that are not."""


class RelativePositionBias(nn.Module):
    """A learned number per head and bucket of distances; the buckets widen with the distance.

    Paper: Raffel et al. 2020, sec. 2.1, arXiv:1910.10683; Chen et al. 2022 (WavLM), eq. 5, arXiv:2110.13900.
    """

    buckets: Tensor

    def __init__(self, heads: int, *, num_buckets: int, max_distance: int) -> None:
        """
        Args:
            num_buckets: half of them for keys after the query.
            max_distance: frames from which on all distances share the last bucket.
        """
        super().__init__()
        self.max_distance = max_distance
        self.bias = nn.Embedding(num_buckets, heads)
        distances = torch.arange(-max_distance, max_distance + 1)
        self.register_buffer("buckets", distance_buckets(distances, num_buckets, max_distance), persistent=False)

    def forward(self, frames: int) -> Tensor:
        """Returns the bias of `frames` queries and as many keys, (H, T, T or more); a view.

        [h, i, k] is that of query i and key T-1-k; what lies beyond k = T-1 is to be cut off.
        """
        size = -(-frames // ALIGNMENT) * ALIGNMENT
        distances = frames - 1 - torch.arange(frames + size - 1, device=self.buckets.device)
        farthest = self.max_distance
        line = self.bias(self.buckets[distances.clamp(-farthest, farthest) + farthest])  # (T+size-1, H)
        return line.t().contiguous().unfold(1, size, 1)  # type: ignore[no-any-return]  # (H, T, size)


class PositionGate(nn.Module):
    """Scales the relative position bias of each query by what is heard there: a gated recurrent unit's two gates.

    Paper: Chi et al. 2022 (XLM-E), arXiv:2106.16138, as in Chen et al. 2022 (WavLM), eq. 6-8, arXiv:2110.13900.
    """

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projection = nn.Linear(width // heads, 8)
        self.scale = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D), the input of the attention, or its queries (BEATs) -> (B, H, T, 1)."""
        B, T, D = x.shape
        logits = self.projection(x.view(B, T, self.heads, D // self.heads))  # (B, T, H, 8)
        update, reset = logits.view(B, T, self.heads, 2, 4).sum(dim=4).sigmoid().transpose(1, 2).chunk(2, dim=3)
        return update * (reset * self.scale - 1.0) + 2.0  # type: ignore[no-any-return]  # (B, H, T, 1)


def distance_buckets(distances: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Buckets of key minus query: one per distance at first, then ever wider ones, evenly spaced in the logarithm.

    Args:
        distances: frames, int64 of any shape; positive = the key comes after the query.
        num_buckets: half of them for positive distances.
        max_distance: frames from which on all distances share the last bucket.

    Returns:
        int64 within 0..num_buckets-1.
    """
    half = num_buckets // 2
    exact = half // 2
    far = distances.abs()
    # In this order and in float32, as all that trained with it do: another order puts some distances elsewhere.
    steps = torch.log(far.clamp(min=exact).float() / exact) / math.log(max_distance / exact) * (half - exact)
    wide = (exact + steps.long()).clamp(max=half - 1)
    return torch.where(far < exact, far, wide) + half * (distances > 0)
