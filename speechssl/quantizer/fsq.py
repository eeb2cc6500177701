"""Finite scalar quantization: each channel is bounded and rounded; there is no codebook to learn.

N frames, D channels, V = product of the levels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from speechssl.errors import ConfigError
from speechssl.quantizer.base import Quantizer, QuantizerOutput
from speechssl.quantizer.codebook import check_codes, check_frames, output, straight_through

LEVELS: dict[int, tuple[int, ...]] = {
    2**8: (8, 6, 5),
    2**10: (8, 5, 5, 5),
    2**12: (7, 5, 5, 5, 5),
    2**14: (8, 8, 8, 6, 5),
    2**16: (8, 8, 8, 5, 5, 5),
}
"""The paper's levels (table 1) for about so many entries."""
MARGIN = 1e-3
"""By which the bounds reach beyond the outermost levels, so that these can be reached."""


class FiniteScalarQuantizer(Quantizer):
    """Rounds each of D channels to one of its levels, which are whole numbers over half their number.

    An even number of levels is shifted by a half, so that 0 is a level. As in vector-quantize-pytorch the shift before
    the tanh is atanh(0.5 / h), which puts 0 on the level 0 exactly; the paper's listing has tan(0.5 / h), which differs
    by less than 1e-3 from 4 levels on.

    Paper: Mentzer et al. 2023, sec. 3.1 and app. A.1, arXiv:2309.15505.
    """

    levels: Tensor
    radius: Tensor
    offset: Tensor
    shift: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int] = LEVELS[2**10]) -> None:
        """
        Args:
            levels: of each channel, at least 2; the paper advises 5 and more.
        """
        super().__init__()
        if not levels or min(levels) < 2:
            raise ConfigError(f"`levels` must be numbers from 2 on, such as 8, 5, 5, 5, but are {list(levels)}.")
        self.width, self.groups, self.entries = len(levels), 1, math.prod(levels)
        count = torch.tensor(levels, dtype=torch.float32)
        radius = (count - 1) * (1 + MARGIN) / 2
        offset = torch.where(count % 2 == 0, 0.5, 0.0)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)  # (D,)
        self.register_buffer("radius", radius, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("shift", torch.atanh(offset / radius), persistent=False)
        basis = torch.tensor([1, *levels[:-1]]).cumprod(0)
        self.register_buffer("basis", basis, persistent=False)

    def forward(self, frames: Tensor, *, generator: torch.Generator | None = None) -> QuantizerOutput:  # noqa: ARG002
        """See `Quantizer.forward`; the gradient goes through the bounds, past the rounding; nothing is drawn."""
        with torch.autocast(frames.device.type, enabled=False):
            bounded = self._bound(frames)
            rounded = bounded.round()
            codes = self._number(rounded.detach())
            scale = (self.levels // 2).float()
            quantized = straight_through(bounded / scale, rounded / scale)
        return output(quantized, codes, None, entries=self.entries)

    def encode(self, frames: Tensor) -> Tensor:
        """See `Quantizer.encode`."""
        with torch.no_grad(), torch.autocast(frames.device.type, enabled=False):
            return self._number(self._bound(frames).round())

    def decode(self, codes: Tensor) -> Tensor:
        """See `Quantizer.decode`."""
        digits = check_codes(codes, 1, self.entries) // self.basis % self.levels  # (N, D)
        return (digits - self.levels // 2).float() / (self.levels // 2).float()

    def _bound(self, frames: Tensor) -> Tensor:
        """(N, D) -> between the outermost levels, (N, D) float32."""
        return torch.tanh(check_frames(frames, self.width) + self.shift) * self.radius - self.offset

    def _number(self, rounded: Tensor) -> Tensor:
        """(N, D) whole numbers -> (N, 1) int64; the first channel counts fastest."""
        return ((rounded.long() + self.levels // 2) * self.basis).sum(dim=1, keepdim=True)
