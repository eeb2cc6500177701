"""Clusters of the quantized frames of a batch, by their direction.

N frames, E width, K clusters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

PASSES = 20
"""Of Lloyd's algorithm; a fixed number keeps the device from waiting to be asked whether it has converged."""


@torch.no_grad()
def cluster_directions(frames: Tensor, clusters: int, *, generator: torch.Generator) -> Tensor:
    """k-means with the cosine as likeness, begun with frames drawn at random; in float32.

    Args:
        frames: (N, E).
        clusters: K, at most N.
        generator: on the CPU or the device of `frames`.

    Returns:
        (N,) int64 below K.

    Paper: Lodagala et al. 2022, sec. 3.2, arXiv:2210.02592.
    """
    with torch.autocast(frames.device.type, enabled=False):
        points = F.normalize(frames.float(), dim=1)
        order = torch.rand(len(points), generator=generator, device=generator.device).argsort()
        centres = points[order[:clusters].to(points.device)]  # (K, E)
        for _ in range(PASSES):
            chosen = (points @ centres.T).argmax(dim=1)
            sums = torch.zeros_like(centres).index_add_(0, chosen, points)
            # One that nobody chose stays where it was.
            centres = torch.where(sums.any(dim=1, keepdim=True), F.normalize(sums, dim=1), centres)
        return (points @ centres.T).argmax(dim=1)
