"""Exact search for the nearest frames, block by block: coarse products pass over what can't be near.

Products in bfloat16 are several times faster than in float32, but too coarse to rank by. How far they are off is
bounded by Cauchy and Schwarz: for a source direction q, a reference direction r, the mean m of all r, and what rounding
leaves of them, q' and r', |q·(r - m) - q'·r'| <= |q - q'| |r - m| + |q'| |(r - m) - r'|. Frames whose coarse product
lies by more than that below what the k nearest need are passed over; the cosines of the few that are left are computed
in float32. Subtracting m adds the same to all products of q, so it changes no order, and makes the bound tighter.

Shapes: S source frames, R reference frames of a block, D width, K neighbours, P pairs of both.
Paper: the bound is ours; lower bounds that prune an exact search as in Weber et al. 1998, sec. 5, "A Quantitative
Analysis and Performance Study for Similarity-Search Methods in High-Dimensional Spaces" (VA-file).
"""

import time
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 16
"""Frames of a block that are passed over together; their largest product stands for them."""
CROWD = 16
"""Groups of a block that a source frame may look into; one that needs more is compared with the whole block."""
ROUNDING = {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-7}
"""Relative error of a float32 product of vectors by `torch.get_float32_matmul_precision()`, beside that of float32."""


@dataclass(frozen=True)
class Block:
    """A stretch of the reference as products see it."""

    first: int
    size: int
    """Frames."""
    coarse: Tensor
    """(R, D) directions less their mean, rounded; R is `size`, filled up with zeros to whole groups."""
    reach: float
    """The largest |r - m|."""
    lost: float
    """The largest |(r - m) - r'|."""


@dataclass
class Nearest:
    """The best so far."""

    cosine: Tensor
    """(S, K) descending; -inf where there are too few."""
    index: Tensor
    """(S, K) int64; -1 where there are too few."""

    def merge(self, cosine: Tensor, index: Tensor, rows: Tensor | slice) -> None:
        """Takes in others of some rows, (S', J)."""
        k = self.cosine.size(1)
        best, places = torch.cat([self.cosine[rows], cosine], dim=1).topk(k, dim=1)
        self.cosine[rows] = best
        self.index[rows] = torch.cat([self.index[rows], index], dim=1).gather(1, places)


@dataclass(frozen=True)
class Query:
    """Source frames as products see them."""

    direction: Tensor
    """(S, D) float32 of length 1."""
    coarse: Tensor
    """(S, D) rounded."""
    lost: Tensor
    """(S,) |q - q'|."""
    offset: Tensor
    """(S,) q·m."""

    @classmethod
    def of(cls, source: Tensor, centre: Tensor, dtype: torch.dtype) -> "Query":
        """Of frames (S, D), the mean of the reference's directions (D,), and the type of the products."""
        direction = F.normalize(source.float(), dim=1)
        coarse = direction.to(dtype)
        return cls(direction, coarse, (direction - coarse.float()).norm(dim=1), (direction @ centre[:, None])[:, 0])


def make_block(directions: Tensor, centre: Tensor, first: int, dtype: torch.dtype) -> Block:
    """Rounds directions (R, D), which it overwrites."""
    size, width = directions.shape
    directions -= centre
    padded = -(-size // GROUP) * GROUP
    coarse = directions.new_zeros(padded, width, dtype=dtype)
    coarse[:size] = directions
    reach = float(directions.norm(dim=1).max())
    lost = 0.0 if dtype == torch.float32 else float(directions.sub_(coarse[:size]).norm(dim=1).max())
    return Block(first, size, coarse, reach, lost)


def find_pairs(query: Query, block: Block, scores: Tensor, best: Nearest) -> tuple[Tensor, Tensor, Tensor]:
    """Which pairs may be among the nearest, from coarse products.

    Args:
        scores: (S, R) of the block's type; -inf = never to be found.
        best: of the blocks before.

    Returns:
        rows (P,) ascending and frames within the block (P,); and the rows that have too many of these, (Q,).
    """
    rows, k = best.cosine.shape
    groups = scores.size(1) // GROUP
    if groups < 4 * k:
        every = torch.arange(rows, device=scores.device)
        return every[:0], every[:0], every
    by_member = scores.view(rows, GROUP, groups)  # group g holds frames g, g + groups, g + 2 groups, ...
    tops = by_member.amax(dim=1)  # (S, G)
    floor = _floor(query, block, tops, best)
    wanted = tops >= floor[:, None]
    crowded = wanted.sum(dim=1) > crowd(k)
    wanted[crowded] = False
    row, group = wanted.nonzero(as_tuple=True)
    members = by_member[row, :, group] >= floor[row, None]  # (P', GROUP)
    pair, member = members.nonzero(as_tuple=True)
    return row[pair], member * groups + group[pair], crowded.nonzero()[:, 0]


def crowd(k: int) -> int:
    """Groups of a block that a source frame may look into."""
    return max(CROWD, 4 * k)


def _floor(query: Query, block: Block, tops: Tensor, best: Nearest) -> Tensor:
    """What a coarse product must reach for its pair to be looked at, (S,) in the type of the products."""
    k, width = best.cosine.size(1), query.direction.size(1)
    summing = width * torch.finfo(torch.float32).eps + ROUNDING[torch.get_float32_matmul_precision()]
    within = query.lost * block.reach + 1.01 * block.lost + 1.01 * summing * (block.reach + 1e-2)  # |q'| <= 1.01
    kth = tops.topk(k, dim=1).values[:, -1].float()  # k frames or more reach it
    kth = kth - kth.abs() * (torch.finfo(tops.dtype).eps / 2) - 2 * within
    floor = torch.maximum(best.cosine[:, -1] - query.offset - within, kth)
    return floor.clamp(min=torch.finfo(tops.dtype).min).to(tops.dtype)  # rounds as the products were, so keeps order


def by_row(values: Tensor, rows: Tensor, count: int, fill: float) -> Tensor:
    """Puts values (P,) of ascending rows (P,) beside each other, (count, the most of a row)."""
    counts = torch.bincount(rows, minlength=count)
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    out = values.new_full((count, int(counts.max())), fill)
    out[rows, place] = values
    return out


@cache
def product_type(device: torch.device) -> torch.dtype:
    """bfloat16 where a processor multiplies it at least 1.5 times faster than float32 (tried once), else float32."""
    if device.type != "cpu":
        return torch.float32
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(256, 256, dtype=dtype)
        torch.mm(matrix, matrix)
        runs = []
        for _ in range(5):
            begin = time.perf_counter()
            torch.mm(matrix, matrix)
            runs.append(time.perf_counter() - begin)
        seconds[dtype] = min(runs)
    return torch.bfloat16 if 1.5 * seconds[torch.bfloat16] < seconds[torch.float32] else torch.float32
