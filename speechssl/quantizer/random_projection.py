"""BEST-RQ's quantizer: a random projection and a random codebook that never change.

N frames, D width, E projected width, G codebooks, V entries per codebook.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.quantizer.base import Quantizer, QuantizerOutput
from speechssl.quantizer.codebook import check_codes, check_frames, check_positive, nearest_codes, output


@dataclass(frozen=True)
class RandomProjectionConfig:
    """Shape; the defaults are those of the paper, for four stacked frames of 80 mel bands."""

    width: int = 320
    """Of the frames: features of mean 0 and deviation 1, without which nearly all frames get the same few codes."""
    entries: int = 8192
    code_width: int = 16
    codebooks: int = 1
    """Each has a projection of its own (multi-softmax: Zhang et al. 2023, sec. 3.1, arXiv:2303.01037)."""


class RandomProjectionQuantizer(Quantizer):
    """Projects, brings to length 1, and takes the nearest entry, which has length 1 as well; no gradient passes.

    Projection and codebooks define the targets: they are buffers, and so are saved with whatever was trained on them.

    Paper: Chiu et al. 2022, sec. 3.2 and 4.1, arXiv:2202.01855: Xavier projection, entries of N(0, 1).
    """

    projection: Tensor
    codebook: Tensor

    def __init__(self, config: RandomProjectionConfig, *, generator: torch.Generator) -> None:
        """
        Args:
            generator: on the CPU; equal ones give equal targets.
        """
        super().__init__()
        check_positive(
            width=config.width, entries=config.entries, code_width=config.code_width, codebooks=config.codebooks
        )
        self.config = config
        self.width, self.groups, self.entries = config.width, config.codebooks, config.entries
        bound = (6.0 / (config.width + config.code_width)) ** 0.5
        projection = torch.empty(config.codebooks, config.width, config.code_width)
        projection.uniform_(-bound, bound, generator=generator)
        codebook = torch.randn(config.codebooks, config.entries, config.code_width, generator=generator)
        self.register_buffer("projection", projection)  # (G, D, E)
        self.register_buffer("codebook", F.normalize(codebook, dim=2))  # (G, V, E)

    def forward(self, frames: Tensor, *, generator: torch.Generator | None = None) -> QuantizerOutput:  # noqa: ARG002
        """See `Quantizer.forward`; nothing is drawn."""
        codes = self.encode(frames)
        return output(self._look_up(codes), codes, None, entries=self.entries)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """See `Quantizer.encode`."""
        with torch.autocast(frames.device.type, enabled=False):
            x = check_frames(frames, self.width) @ self.projection.transpose(0, 1).flatten(1)  # (N, G E)
            parts = F.normalize(x.view(-1, self.groups, self.config.code_width), dim=2).unbind(1)
            return torch.stack([nearest_codes(x, book) for x, book in zip(parts, self.codebook, strict=True)], dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """See `Quantizer.decode`; the vectors lie behind the projection: (N, G) -> (N, G E)."""
        return self._look_up(check_codes(codes, self.groups, self.entries))

    def _look_up(self, codes: Tensor) -> Tensor:
        return self.codebook[torch.arange(self.groups, device=codes.device), codes].flatten(1)
