"""Vector quantization with a codebook that gradients train: the k-means variant of vq-wav2vec.

N frames, D width, G codebooks, V entries per codebook.
Reference: fairseq `modules/kmeans_vector_quantizer.py`; its projection and group norm stand with whoever calls this.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.quantizer.base import Quantizer, QuantizerOutput
from speechssl.quantizer.codebook import (
    check_codes,
    check_frames,
    check_positive,
    fitted_entries,
    nearest_codes,
    output,
    straight_through,
    summed_error,
)


@dataclass(frozen=True)
class NearestNeighbourConfig:
    """Shape and loss; the defaults are those of vq-wav2vec.

    Paper: Baevski et al. 2020, sec. 3.2 and 5.3, arXiv:1910.05453.
    """

    width: int = 512
    groups: int = 2
    """Parts of a frame that are quantized each on its own."""
    entries: int = 320
    shared: bool = True
    """Whether all groups use one codebook."""
    commitment: float = 0.25
    """Weight of the pull of frames towards their entries, beside that of entries towards their frames."""
    initial_deviation: float = 0.01
    """Of the normal distribution that entries are drawn from at first."""


class NearestNeighbourQuantizer(Quantizer):
    """The nearest entry of each part of a frame; gradients go straight through to the frame.

    Papers: van den Oord et al. 2017, eq. 1-3, arXiv:1711.00937; Baevski et al. 2020, eq. 4, arXiv:1910.05453.
    """

    def __init__(self, config: NearestNeighbourConfig) -> None:
        super().__init__()
        check_positive(width=config.width, groups=config.groups, entries=config.entries)
        if config.width % config.groups:
            raise ConfigError(f"`width` must be a multiple of {config.groups} groups, but is {config.width}.")
        self.config = config
        self.width, self.groups, self.entries = config.width, config.groups, config.entries
        books = 1 if config.shared else config.groups
        self.codebook = nn.Parameter(torch.empty(books, config.entries, config.width // config.groups))
        nn.init.normal_(self.codebook, std=config.initial_deviation)

    def forward(self, frames: Tensor, *, generator: torch.Generator | None = None) -> QuantizerOutput:  # noqa: ARG002
        """See `Quantizer.forward`; the loss is the mean square error, whose gradient moves the entries, and
        `commitment` times the same one that moves the frames; nothing is drawn."""
        with torch.autocast(frames.device.type, enabled=False):
            x = check_frames(frames, self.width)
            codes = self.encode(x)
            chosen = self._look_up(codes)  # (N, D)
            loss = summed_error(chosen, x.detach()) + self.config.commitment * summed_error(x, chosen.detach())
            return output(straight_through(x, chosen), codes, loss, entries=self.entries)

    def encode(self, frames: Tensor) -> Tensor:
        """See `Quantizer.encode`."""
        parts = check_frames(frames, self.width).chunk(self.groups, dim=1)  # G of (N, D/G)
        books = self.codebook.expand(self.groups, -1, -1)
        return torch.stack([nearest_codes(part, book) for part, book in zip(parts, books, strict=True)], dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """See `Quantizer.decode`."""
        return self._look_up(check_codes(codes, self.groups, self.entries)).detach()

    def _look_up(self, codes: Tensor) -> Tensor:
        """(N, G) -> (N, D) with gradients to the entries."""
        books = self.codebook.expand(self.groups, -1, -1).float()
        return torch.cat([book[code] for book, code in zip(books, codes.unbind(1), strict=True)], dim=1)

    @torch.no_grad()
    def fit(self, frames: Tensor, *, generator: torch.Generator) -> None:
        """Puts the entries at the k-means centroids of frames (N, D); of all parts together where they share.

        The generator is on the CPU.
        """
        parts = torch.stack(check_frames(frames, self.width).chunk(self.groups, dim=1))
        data = parts.flatten(0, 1)[None] if self.config.shared else parts  # (books, N', D/G)
        for book, rows in zip(self.codebook, data, strict=True):
            book.copy_(fitted_entries(rows, self.entries, generator=generator))
