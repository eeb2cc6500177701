"""k-means of the features before the network: frames become centroids, which say less of the speaker.

The centroids stand for the frames as vectors. Several k-means with different numbers of clusters (an ensemble) stand
side by side; each may cut the features into parts with codebooks of their own (product quantization).

Paper: Huang et al. 2022, arXiv:2207.04356, for any-to-any conversion; ensembles and product quantization as in Hsu et
al. 2021 (HuBERT), sec. 2.3, arXiv:2106.07447.

B batch, T frames, N frames of all utterances, D width, E members of the ensemble.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from downstreams.voice_conversion.synthesis.config import DiscretiseConfig
from speechssl.errors import ConfigError
from speechssl.lengths import lengths_to_padding_mask
from speechssl.quantizer.codebook import fitted_entries
from speechssl.quantizer.kmeans import KMeansQuantizer, load_kmeans_quantizer

SPARE = 1.25
"""How many times the frames that are wanted are held while they are drawn."""


class Discretiser(nn.Module):
    """Replaces each frame by its nearest centroids."""

    def __init__(self, size: int, config: DiscretiseConfig) -> None:
        """
        Args:
            size: D, a multiple of `config.partitions`.
        """
        super().__init__()
        if not config.clusters or size % config.partitions:
            raise ConfigError(
                "A discretiser needs `discretise.clusters` and features whose width is a multiple of "
                f"`discretise.partitions`, but they are {config.clusters}, {size} and {config.partitions}."
            )
        self.config = config
        self.partitions = config.partitions
        part = size // config.partitions
        self.quantizers = nn.ModuleList(
            KMeansQuantizer(torch.zeros(count, part)) for count in config.clusters for _ in range(config.partitions)
        )
        self.width = size * len(config.clusters)
        """Of what comes out."""

    @torch.no_grad()
    def fit(self, frames: Tensor, *, generator: torch.Generator) -> None:
        """Fits all centroids to (N, D) frames, of which at most `config.frames` are drawn."""
        drawn = torch.randperm(len(frames), generator=generator)[: self.config.frames]
        parts = frames[drawn.to(frames.device)].float().chunk(self.partitions, dim=1)
        for number, quantizer in enumerate(self._each()):
            part = parts[number % self.partitions].contiguous()
            quantizer.centroids.copy_(fitted_entries(part, quantizer.entries, generator=generator))

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, E D); no gradient passes."""
        parts = features.flatten(0, 1).chunk(self.partitions, dim=1)
        found = [q.decode(q.encode(parts[n % self.partitions])) for n, q in enumerate(self._each())]
        return torch.cat(found, dim=1).view(*features.shape[:2], self.width).to(features.dtype)

    def _each(self) -> list[KMeansQuantizer]:
        """Those of the first member, one for each part, then those of the second."""
        return [cast(KMeansQuantizer, quantizer) for quantizer in self.quantizers]


def draw_frames(batches: Iterable[tuple[Tensor, Tensor]], count: int, *, generator: torch.Generator) -> Tensor:
    """Draws frames, each as likely as any other, in one go through batches and little more memory than they take.

    Args:
        batches: (B, T, D) features and valid frames (B,).
        count: at most.
        generator: on the CPU.

    Returns:
        (N, D) float32 on the CPU.
    """
    kept, keys = list[Tensor](), list[Tensor]()
    highest, held = 1.0, 0
    for features, lengths in batches:
        frames = features[~lengths_to_padding_mask(lengths, features.size(1))].float().cpu()  # (N, D)
        drawn = torch.rand(len(frames), generator=generator, dtype=torch.float64)
        low = drawn < highest  # no frame with a higher key can be among the `count` lowest
        kept.append(frames[low])
        keys.append(drawn[low])
        held += len(kept[-1])
        if held > SPARE * count:
            kept, keys = _lowest(kept, keys, count)
            highest, held = float(keys[0].max()), count
    return _lowest(kept, keys, count)[0][0]


def _lowest(frames: list[Tensor], keys: list[Tensor], count: int) -> tuple[list[Tensor], list[Tensor]]:
    """The `count` frames with the lowest keys, in the order in which they came."""
    joined = torch.cat(keys)
    places = joined.topk(min(count, len(joined)), largest=False).indices.sort().values
    return [torch.cat(frames)[places]], [joined[places]]


def load_discretiser(folders: Sequence[str | Path]) -> Discretiser:
    """An ensemble of what `speechssl cluster` wrote, one member per folder, for features of the same upstream."""
    loaded = [load_kmeans_quantizer(folder) for folder in folders]
    widths = {quantizer.width for quantizer in loaded}
    if len(widths) != 1:
        raise ConfigError(f"The k-means of an ensemble must be of features of one width, but are of {sorted(widths)}.")
    discretiser = Discretiser(widths.pop(), DiscretiseConfig(clusters=tuple(q.entries for q in loaded)))
    discretiser.quantizers = nn.ModuleList(loaded)
    return discretiser
