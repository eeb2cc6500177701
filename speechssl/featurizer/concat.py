"""Layers side by side, projected to a width of choice.

K layers, B batch, T frames, D width of a layer, E width of the result.
Paper: Shih and Harwath 2024, sec. 2.3 ('Concat + Proj'), arXiv:2406.12209.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from speechssl.featurizer.interface import Interface


class Concat(Interface):
    """K layers of width D as one of K times D, or as many products added up: no stack of them is made then.

    The projection has no bias, so that padding stays 0; what follows it in a head has one.
    """

    def __init__(self, num_layers: int, size: int, *, width: int | None = None, normalize: bool = False) -> None:
        """
        Args:
            width: E, to which a linear layer brings it; None = K times D, and nothing is learned.
        """
        super().__init__(num_layers, size, normalize=normalize)
        self.width = num_layers * size if width is None else width
        self.project = None if width is None else nn.Linear(num_layers * size, width, bias=False)

    @property
    @override
    def hidden_size(self) -> int:
        return self.width

    @override
    def _join(self, layers: list[Tensor], lengths: Tensor | None) -> Tensor:
        del lengths  # 0 stays 0
        if self.project is None:
            return torch.cat([self._prepare(layer) for layer in layers], dim=-1)  # (..., K * D)
        parts = torch.split(self.project.weight, self.size, dim=1)  # K of (E, D)
        total = F.linear(self._prepare(layers[0]), parts[0])  # (..., E)
        for layer, part in zip(layers[1:], parts[1:], strict=True):
            total = total + F.linear(self._prepare(layer), part)
        return total
