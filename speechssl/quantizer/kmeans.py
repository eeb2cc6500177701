"""k-means centroids as a quantizer: targets that do not change.

N frames, D width, V clusters.
"""

from pathlib import Path

import torch
from torch import Tensor

from speechssl.errors import ConfigError
from speechssl.quantizer.base import Quantizer, QuantizerOutput
from speechssl.quantizer.codebook import check_codes, check_frames, nearest_codes, output
from speechssl.targets.kmeans import load_kmeans


class KMeansQuantizer(Quantizer):
    """The nearest of fixed centroids; no gradient passes.

    Paper: Hsu et al. 2021 (HuBERT), sec. 2.1, arXiv:2106.07447.
    """

    centroids: Tensor

    def __init__(self, centroids: Tensor) -> None:
        """
        Args:
            centroids: (V, D).
        """
        super().__init__()
        if centroids.dim() != 2 or centroids.numel() == 0:
            raise ConfigError(f"`centroids` must be (clusters, width), but has shape {tuple(centroids.shape)}.")
        self.entries, self.width = centroids.shape
        self.groups = 1
        self.register_buffer("centroids", centroids.detach().float().clone())

    def forward(self, frames: Tensor, *, generator: torch.Generator | None = None) -> QuantizerOutput:  # noqa: ARG002
        """See `Quantizer.forward`; nothing is drawn."""
        codes = self.encode(frames)
        return output(self.centroids[codes[:, 0]], codes, None, entries=self.entries)

    def encode(self, frames: Tensor) -> Tensor:
        """See `Quantizer.encode`."""
        return nearest_codes(check_frames(frames, self.width), self.centroids)[:, None]

    def decode(self, codes: Tensor) -> Tensor:
        """See `Quantizer.decode`."""
        return self.centroids[check_codes(codes, 1, self.entries)[:, 0]]


def load_kmeans_quantizer(folder: str | Path) -> KMeansQuantizer:
    """The quantizer of what `speechssl cluster` wrote to a folder."""
    return KMeansQuantizer(load_kmeans(Path(folder)).centroids)
