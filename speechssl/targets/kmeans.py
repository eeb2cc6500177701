"""k-means for frame labels: what is fitted, saved and assigned; how it is fitted stands in `lloyd.py`.

N frames, D width, K clusters.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from speechssl.checkpoint import save_tensors, write_json
from speechssl.encoder.linear import Linear
from speechssl.errors import SpeechsslError

FORMAT = 1
CHUNK = 4096
"""Frames per distance matrix: it stays in the cache."""


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


def nearest(features: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each frame and its squared distance: (N, D) -> (N,) int64, (N,) float32."""
    scores = Scores(centroids)
    found = [scores(chunk) for chunk in torch.split(features, CHUNK)]
    return torch.cat([codes for codes, _ in found]), torch.cat([distance for _, distance in found])


class Scores:
    """Compares frames with centroids by one matrix product, in float32 or, for a first approximation, in bfloat16.

    |x - c|^2 = |x|^2 - 2 x.c + |c|^2, about a common `centre`: far from the origin the differences would be lost to
    rounding.
    """

    def __init__(self, centroids: Tensor, *, dtype: torch.dtype = torch.float32, centre: Tensor | None = None) -> None:
        """
        Args:
            centroids: (K, D) float32.
            centre: (D,) such as the mean of the frames; None = the centroids' mean.
        """
        self.centre = centroids.mean(dim=0) if centre is None else centre
        self.dtype = dtype
        shifted = centroids - self.centre
        clusters, width = centroids.shape
        # Made without memory first: fresh weights would be drawn from the global generator.
        self.product = Linear(width, clusters, dtype=dtype, device="meta").to_empty(device=centroids.device)
        with torch.no_grad():
            self.product.weight.copy_(-2 * shifted)
            self.product.bias.copy_(shifted.square().sum(dim=1))

    @torch.no_grad()
    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> the nearest centroid (N,) int64 and its squared distance (N,) float32."""
        shifted = features - self.centre
        with torch.autocast(features.device.type, enabled=False):
            score, codes = self.product(shifted.to(self.dtype)).min(dim=1)
        return codes, (score.float() + shifted.square().sum(dim=1)).clamp_(min=0)
