"""Fits k-means: k-means++ on a subsample, passes over subsamples, then over everything, or mini-batches of a stream.

The passes over a part of the frames, and the first ones over all, compare in bfloat16 (twice as fast on a CPU, and more
on a GPU), the last ones in float32: both end in the same minimum. Beside scikit-learn's MiniBatchKMeans with fairseq's
settings: `benchmarks/kmeans.py`.

N frames, D width, K clusters.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.data.batching import make_generator
from speechssl.errors import SpeechsslError
from speechssl.ranks import Ranks
from speechssl.targets.kmeans import CHUNK, KMeans, Scores, nearest

SEED_WIDTH = 128
"""Dimensions of a random projection in which the first centroids are chosen: distances keep within some percent."""
ALONE = Ranks()


@dataclass(frozen=True)
class KMeansConfig:
    """How the centroids are found."""

    clusters: int = 100
    subsampled_passes: int = 10
    subsample: int = 100
    """Frames per cluster that seed the centroids, and in each sub-sampled pass; HuBERT's MiniBatchKMeans sees 10 000
    per step."""
    fast_passes: int = 10
    """Over all frames, in bfloat16."""
    full_passes: int = 2
    """Over all frames, in float32."""

    def __post_init__(self) -> None:
        if self.clusters < 1 or self.subsample < 1:
            raise SpeechsslError(f"`clusters` must be >= 1, but is {self.clusters} (`subsample`: {self.subsample}).")


def fit_kmeans(
    features: Tensor, config: KMeansConfig, *, generator: torch.Generator, ranks: Ranks = ALONE
) -> tuple[KMeans, float]:
    """Fits centroids to frames in memory.

    Args:
        features: (N, D) float32 with N >= clusters over all processes; of this process.
        generator: decides subsamples, first centroids and restarts, on the CPU; equal generators give equal centroids.
        ranks: the processes that hold the frames together; their generators begin alike, and so are their centroids.

    Returns:
        the k-means and its inertia: the mean squared distance of a frame to its centroid.
    """
    total = int(ranks.sum(torch.tensor(len(features), device=features.device)))
    if total < config.clusters:
        raise SpeechsslError(
            f"{config.clusters} clusters need as many frames, but there are {total}: "
            "ask for fewer clusters or a larger sample."
        )
    own = make_generator(int(torch.randint(2**62, (1,), generator=generator)), ranks.rank)  # draws among own frames
    size = math.ceil(min(config.clusters * config.subsample, total) * len(features) / total)
    # Drawn once: each sub-sampled pass takes the next piece, in memory order.
    drawn = torch.randperm(len(features), generator=own)[: size * max(config.subsampled_passes, 1)]
    sample = features[drawn.to(features.device)]
    seeds = ranks.gather(sample[:size])
    centroids = initial_centroids(seeds, config.clusters, generator=generator)
    for number in range(config.subsampled_passes):
        start = number * size % max(len(sample) - size + 1, 1)
        part = sample[start : start + size]
        centroids = lloyd_pass(part, centroids, generator=own, ranks=ranks, dtype=torch.bfloat16)
    for number in range(config.fast_passes + config.full_passes):
        dtype = torch.bfloat16 if number < config.fast_passes else torch.float32
        centroids = lloyd_pass(features, centroids, generator=own, ranks=ranks, dtype=dtype)
    inertia = nearest(features, centroids)[1].double().sum()
    return KMeans(centroids), float(ranks.sum(inertia)) / total


def initial_centroids(features: Tensor, clusters: int, *, generator: torch.Generator) -> Tensor:
    """Greedy k-means++: of a few candidates drawn by squared distance, the one that lowers the inertia most stays.

    Args:
        features: (N, D); wide ones are compared in a random projection.

    Returns:
        (K, D).

    Paper: Arthur and Vassilvitskii 2007, "k-means++: the advantages of careful seeding".
    """
    seen = features.float()
    if seen.size(1) > 2 * SEED_WIDTH:
        projection = torch.randn(seen.size(1), SEED_WIDTH, generator=generator) / math.sqrt(SEED_WIDTH)
        seen = (seen - seen.mean(dim=0)) @ projection.to(seen)
    trials = 2 + int(math.log(clusters))
    norms = seen.square().sum(dim=1)  # (N,)
    chosen = [int(torch.randint(len(seen), (1,), generator=generator))]
    closest = (seen - seen[chosen[0]]).square().sum(dim=1)  # (N,)
    for _ in range(clusters - 1):
        candidates = _draw(closest, trials, generator)
        distance = torch.addmm(norms[candidates], seen, seen[candidates].T, alpha=-2)  # (N, trials)
        distance = torch.minimum(distance.add_(norms[:, None]).clamp_(min=0), closest[:, None])
        best = int(distance.sum(dim=0).argmin())
        chosen.append(int(candidates[best]))
        closest = distance[:, best].contiguous()
    return features[chosen].clone()


def lloyd_pass(
    features: Tensor,
    centroids: Tensor,
    *,
    generator: torch.Generator,
    ranks: Ranks = ALONE,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Moves every centroid to the mean of its frames; one without frames restarts at a frame far from its centroid.

    Args:
        features: (N, D).
        centroids: (K, D).
        dtype: of the comparison; means are float32.

    Returns:
        (K, D).
    """
    return lloyd_stream([features], centroids, generator=generator, ranks=ranks, dtype=dtype)


def lloyd_stream(
    chunks: Iterable[Tensor],
    centroids: Tensor,
    *,
    generator: torch.Generator,
    ranks: Ranks = ALONE,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`lloyd_pass` over frames that come in chunks (N_i, D), of which none is kept."""
    scores = Scores(centroids, dtype=dtype)
    sums, counts = torch.zeros_like(centroids), centroids.new_zeros(len(centroids))
    spare = _Spare(generator)
    for chunk in chunks:
        found = [scores(part) for part in torch.split(chunk, CHUNK)]
        codes, distance = (torch.cat(parts) for parts in zip(*found, strict=True))
        part_sums, part_counts = _sums(chunk, codes, len(centroids))
        sums += part_sums
        counts += part_counts
        spare.offer(chunk, distance)
    sums, counts = ranks.sum(sums), ranks.sum(counts)
    moved = sums / counts.clamp(min=1)[:, None]
    empty = (counts == 0).nonzero().squeeze(1)
    if len(empty):
        moved[empty] = spare.take(len(empty), ranks, like=centroids)
    return moved


def minibatch_pass(
    chunks: Iterable[Tensor],
    centroids: Tensor,
    counts: Tensor,
    *,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, Tensor]:
    """One pass of mini-batch k-means over a stream: each chunk pulls its centroids towards its means.

    Args:
        chunks: (N_i, D) of this process; each round takes one of every process that still has one.
        counts: frames that each centroid has seen so far, (K,): the pull falls as 1 / count.

    Returns:
        centroids (K, D) and counts (K,).

    Paper: Sculley 2010, "Web-scale k-means clustering", algorithm 1.
    """
    iterator = iter(chunks)
    while True:
        chunk = next(iterator, None)
        if int(ranks.sum(torch.tensor(float(chunk is not None), device=centroids.device))) == 0:
            return centroids, counts
        sums, seen = torch.zeros_like(centroids), torch.zeros_like(counts)
        if chunk is not None:
            sums, seen = _sums(chunk, nearest(chunk, centroids)[0], len(centroids))
        sums, seen = ranks.sum(sums), ranks.sum(seen)
        counts = counts + seen
        centroids = centroids + (sums - seen[:, None] * centroids) / counts.clamp(min=1)[:, None]


def _sums(features: Tensor, codes: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Sum and number of the frames of each cluster: (K, D), (K,) float32."""
    counts = torch.bincount(codes, minlength=clusters)
    # Reads every frame once, cluster by cluster; index_add would write to memory once per frame.
    bags = F.embedding_bag(torch.argsort(codes), features.float(), counts.cumsum(0) - counts, mode="sum")
    return bags, counts.float()


class _Spare:
    """Remembers frames that are far from their centroids, for centroids that have none."""

    KEPT = 256

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.rows: Tensor | None = None
        self.keys: Tensor | None = None

    def offer(self, chunk: Tensor, distance: Tensor) -> None:
        """Keeps those frames of (N, D) that a draw without replacement by `distance` (N,) would take first."""
        # The largest of u^(1/w) are such a draw (Efraimidis and Spirakis 2006); here by their logarithms.
        draw = torch.rand(len(chunk), generator=self.generator).to(chunk.device).clamp_(min=1e-30)
        keys = draw.log() / (distance + 1e-12)
        best = keys.topk(min(self.KEPT, len(keys)))
        keys, rows = best.values, chunk[best.indices].float()
        if self.keys is not None and self.rows is not None:
            keys, rows = torch.cat((self.keys, keys)), torch.cat((self.rows, rows))
            best = keys.topk(min(self.KEPT, len(keys)))
            keys, rows = best.values, rows[best.indices]
        self.keys, self.rows = keys, rows

    def take(self, count: int, ranks: Ranks, *, like: Tensor) -> Tensor:
        """(count, D), of all processes; frames repeat where there are too few."""
        rows = like.new_zeros(0, like.size(1)) if self.rows is None else self.rows
        keys = like.new_zeros(0) if self.keys is None else self.keys
        rows, keys = ranks.gather(rows), ranks.gather(keys)
        order = keys.argsort(descending=True)
        return rows[order[torch.arange(count, device=order.device) % len(order)]]


def _draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices drawn by `weights` (N,) with replacement; where all are 0, any will do. (count,) int64."""
    total = weights.double().cumsum(0)
    if not bool(total[-1] > 0):
        return torch.randint(len(weights), (count,), generator=generator).to(weights.device)
    point = torch.rand(count, generator=generator, dtype=torch.float64).to(weights.device) * total[-1]
    return torch.searchsorted(total, point, right=True).clamp_(max=len(weights) - 1)
