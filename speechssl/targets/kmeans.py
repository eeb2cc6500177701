"""k-means for frame labels: k-means++ on a subsample, some Lloyd passes over subsamples, then a few over everything.

N frames, D width, K clusters.
Ten sub-sampled and five full passes reach the inertia of scikit-learn's MiniBatchKMeans with fairseq's settings in a
fraction of its time (`benchmarks/kmeans.py`).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from speechssl.checkpoint import save_tensors, write_json
from speechssl.errors import SpeechsslError

FORMAT = 1
CHUNK = 8192  # frames per distance matrix: it stays in the cache


@dataclass(frozen=True)
class KMeansConfig:
    """How the centroids are found."""

    clusters: int = 100
    subsampled_passes: int = 10
    full_passes: int = 5
    subsample: int = 100
    """Frames per cluster in a sub-sampled pass; HuBERT's MiniBatchKMeans sees 10 000 per step."""


@dataclass(frozen=True)
class KMeans:
    """Centroids, and where they come from."""

    centroids: Tensor
    """(K, D) float32."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Among others the upstream, layer and label rate (Hz) that it was fitted on."""

    def assign(self, features: Tensor) -> Tensor:
        """Returns the nearest centroid of each frame: (N, D) -> (N,) int64."""
        return nearest(features, self.centroids)[0]

    def save(self, folder: Path) -> None:
        """Writes `kmeans.safetensors` and then `config.json`, which marks the folder as complete."""
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors({"centroids": self.centroids}, folder / "kmeans.safetensors")
        write_json(folder / "config.json", {"format": FORMAT, **self.info})


def load_kmeans(folder: Path) -> KMeans:
    """Reads what `KMeans.save` wrote.

    Raises:
        SpeechsslError: missing, unreadable, or of another format.
    """
    try:
        info = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if info.pop("format") != FORMAT:
            raise SpeechsslError(
                f"The k-means in {folder} has another format than {FORMAT}: run `speechssl cluster` again."
            )
        return KMeans(load_file(folder / "kmeans.safetensors")["centroids"], info)
    except FileNotFoundError as error:
        raise SpeechsslError(f"There is no k-means in {folder}: run `speechssl cluster` first.") from error
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise SpeechsslError(
            f"The k-means in {folder} can't be read ({error}): remove the folder and run `speechssl cluster` again."
        ) from error


def fit_kmeans(features: Tensor, config: KMeansConfig, *, generator: torch.Generator) -> tuple[KMeans, float]:
    """Fits centroids.

    Args:
        features: (N, D) float32 with N >= clusters.
        generator: decides subsamples, first centroids and restarts; equal generators give equal centroids.

    Returns:
        the k-means and its inertia: the mean squared distance of a frame to its centroid.
    """
    if config.clusters < 1:
        raise SpeechsslError(f"`clusters` must be >= 1, but is {config.clusters}.")
    if len(features) < config.clusters:
        raise SpeechsslError(
            f"{config.clusters} clusters need as many frames, but there are {len(features)}: "
            "ask for fewer clusters or a larger sample."
        )
    size = config.clusters * config.subsample

    def sample() -> Tensor:
        return features[torch.randperm(len(features), generator=generator)[:size]]

    centroids = initial_centroids(sample(), config.clusters, generator=generator)
    for _ in range(config.subsampled_passes):
        centroids = lloyd_pass(sample(), centroids, generator=generator)
    for _ in range(config.full_passes):
        centroids = lloyd_pass(features, centroids, generator=generator)
    inertia = nearest(features, centroids)[1].double().mean().item()
    return KMeans(centroids), inertia


def initial_centroids(features: Tensor, clusters: int, *, generator: torch.Generator) -> Tensor:
    """Greedy k-means++: of a few candidates drawn by squared distance, the one that lowers the inertia most stays.

    Args:
        features: (N, D).

    Returns:
        (K, D).

    Paper: Arthur and Vassilvitskii 2007, "k-means++: the advantages of careful seeding".
    """
    trials = 2 + int(math.log(clusters))
    norms = features.square().sum(dim=1)  # (N,)
    chosen = [int(torch.randint(len(features), (1,), generator=generator))]
    closest = (features - features[chosen[0]]).square().sum(dim=1)  # (N,)
    for _ in range(clusters - 1):
        if not bool(closest.sum() > 0):
            closest = torch.ones_like(closest)  # fewer distinct frames than clusters: any frame will do
        candidates = torch.multinomial(_drawable(closest), trials, replacement=True, generator=generator)
        distance = norms[:, None] - 2 * features @ features[candidates].T + norms[candidates]  # (N, trials)
        distance = torch.minimum(distance.clamp_(min=0), closest[:, None])
        best = int(distance.sum(dim=0).argmin())
        chosen.append(int(candidates[best]))
        closest = distance[:, best]
    return features[chosen].clone()


def lloyd_pass(features: Tensor, centroids: Tensor, *, generator: torch.Generator) -> Tensor:
    """Moves every centroid to the mean of its frames; one without frames restarts at a frame far from its centroid.

    Args:
        features: (N, D).
        centroids: (K, D).

    Returns:
        (K, D).
    """
    codes, distance = nearest(features, centroids)
    sums = torch.zeros_like(centroids).index_add_(0, codes, features)
    counts = torch.bincount(codes, minlength=len(centroids))
    moved = sums / counts.clamp(min=1)[:, None]
    empty = (counts == 0).nonzero().squeeze(1)
    if len(empty):
        weights = _drawable(distance + 1e-12)
        moved[empty] = features[torch.multinomial(weights, len(empty), generator=generator)]
    return moved


def nearest(features: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each frame and its squared distance: (N, D) -> (N,) int64, (N,) float32."""
    norms = centroids.square().sum(dim=1)  # (K,)
    codes, distances = [], []
    for chunk in torch.split(features, CHUNK):
        score, code = torch.addmm(norms, chunk, centroids.T, alpha=-2).min(dim=1)  # |c|^2 - 2 x.c, the same order
        codes.append(code)
        distances.append((score + chunk.square().sum(dim=1)).clamp_(min=0))
    return torch.cat(codes), torch.cat(distances)


def _drawable(weights: Tensor) -> Tensor:
    """At most 2^24 weights, which is what torch.multinomial takes."""
    return weights[: 2**24]
