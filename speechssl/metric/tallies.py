"""Metrics that stay sums on the device until ranks and steps have been added up; the name's ending says what they are.

    <name>_usage      (K,) or (G, K) counts or summed probabilities   -> <name>_perplexity, summed over the codebooks
    <name>_moments    (3, D) number of frames, sums, sums of squares  -> <name>_std, its mean over D
    <name>            scalar sum                                      -> <name>, divided by the sample size

G codebooks, K entries, N frames, D width.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from speechssl.metric.codes import perplexity

USAGE = "_usage"
MOMENTS = "_moments"
SAMPLE_SIZE = "sample_size"


def usage(codes: Tensor, entries: int, *, weight: Tensor | None = None) -> Tensor:
    """How often each entry was chosen.

    Args:
        codes: (N,) or (N, G) int64 below `entries`.
        weight: (N,) of each frame; None = 1.

    Returns:
        (entries,) or (G, entries) float32.
    """
    wide = codes if codes.dim() == 2 else codes[:, None]  # (N, G)
    ones = torch.ones(len(codes), device=codes.device) if weight is None else weight.float()
    offset = torch.arange(wide.size(1), device=codes.device) * entries
    counts = torch.zeros(wide.size(1) * entries, device=codes.device)
    counts.index_add_(0, (wide + offset).flatten(), ones[:, None].expand(wide.shape).flatten())
    return counts.view(-1, entries) if codes.dim() == 2 else counts


def moments(frames: Tensor) -> Tensor:
    """Number, sums and sums of squares over frames: (N, D) -> (3, D) float32."""
    x = frames.detach().float()
    return torch.stack((torch.full_like(x[:1].sum(dim=0), len(x)), x.sum(dim=0), x.square().sum(dim=0)))


def standard_deviation(tally: Tensor) -> Tensor:
    """Mean over D of the (unbiased) standard deviation over frames, from (3, D) `moments`; scalar float64."""
    count, total, square = tally.double()
    variance = (square - total.square() / count.clamp(min=1)) / (count - 1).clamp(min=1)
    return torch.sqrt(variance.clamp(min=0)).mean()


def summarize(tallies: Mapping[str, Tensor]) -> dict[str, float]:
    """Turns sums over ranks and steps into what is logged; they must hold 'sample_size'."""
    size = float(tallies[SAMPLE_SIZE])
    values: dict[str, float] = {}
    for name, value in tallies.items():
        if name.endswith(USAGE):
            rows = value[None] if value.dim() == 1 else value
            values[name.removesuffix(USAGE) + "_perplexity"] = sum(float(perplexity(row)) for row in rows)
        elif name.endswith(MOMENTS):
            values[name.removesuffix(MOMENTS) + "_std"] = float(standard_deviation(value))
        elif name != SAMPLE_SIZE:
            values[name] = float(value) / size if size else math.nan
    return values
