"""Product quantization in which each codebook hears its own slice of the frames.

N frames, D width, G codebooks, V entries.
"""

import torch
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.quantizer.base import Quantizer, QuantizerOutput
from speechssl.quantizer.codebook import check_codes, check_frames
from speechssl.quantizer.gumbel import GumbelQuantizer


class SlicedGumbelQuantizer(Quantizer):
    """One Gumbel quantizer for each of G slices of a frame; what comes out is as wide as what goes in.

    Paper: Chung et al. 2020 (VQ-APC), sec. 2.2, arXiv:2005.08392; Liu et al. 2021 (NPC), sec. 2.3, arXiv:2011.00406.
    Reference: S3PRL `upstream/{apc,npc}/vq.py`, whose linear layers begin as torch makes them.
    """

    def __init__(self, width: int, *, groups: int, entries: int, temperature: float) -> None:
        """
        Args:
            width: D, a multiple of `groups`.
            temperature: of the softmax that gradients go through.
        """
        super().__init__()
        if groups < 1 or width % groups:
            raise ConfigError(f"The quantized width must be a multiple of the groups, but is {width} with {groups}.")
        self.width, self.groups, self.entries = width, groups, entries
        part = width // groups
        self.slices = nn.ModuleList(
            GumbelQuantizer(part, output_width=part, groups=1, entries=entries, temperature=(temperature,) * 2 + (1.0,))
            for _ in range(groups)
        )
        for quantizer in self._quantizers():
            for layer in quantizer.projection:
                layer.reset_parameters()  # type: ignore[operator]  # ModuleList forgets its types
            nn.init.uniform_(quantizer.codebook, -(entries**-0.5), entries**-0.5)

    def forward(self, frames: Tensor, *, generator: torch.Generator | None = None) -> QuantizerOutput:
        """See `Quantizer.forward`; (N, D) -> (N, D)."""
        parts = check_frames(frames, self.width).chunk(self.groups, dim=1)
        made = [q(part, generator=generator) for q, part in zip(self.slices, parts, strict=True)]
        return QuantizerOutput(
            torch.cat([m.quantized for m in made], dim=1),
            torch.cat([m.codes for m in made], dim=1),
            torch.stack([m.loss for m in made]).sum(),
            torch.cat([m.usage for m in made]),
            torch.cat([m.probability for m in made]),
        )

    def encode(self, frames: Tensor) -> Tensor:
        """See `Quantizer.encode`."""
        parts = check_frames(frames, self.width).chunk(self.groups, dim=1)
        return torch.cat([q.encode(part) for q, part in zip(self._quantizers(), parts, strict=True)], dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """See `Quantizer.decode`."""
        columns = check_codes(codes, self.groups, self.entries).chunk(self.groups, dim=1)
        return torch.cat([q.decode(column) for q, column in zip(self._quantizers(), columns, strict=True)], dim=1)

    def _quantizers(self) -> list[GumbelQuantizer]:
        return [q for q in self.slices if isinstance(q, GumbelQuantizer)]
