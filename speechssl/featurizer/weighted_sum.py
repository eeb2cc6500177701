"""The learned weighted sum over the hidden states of a frozen upstream.

K layers, B batch, T frames, D width.
Paper: Yang et al. 2021 (SUPERB), sec. 3, arXiv:2105.01051; the weights begin equal, as in S3PRL's `Featurizer`.
"""

import torch
from torch import Tensor, nn
from typing_extensions import override

from speechssl.featurizer.interface import Interface


class WeightedSum(Interface):
    """Softmax-weighted sum of K layers, added up one after the other so that no stack of them is ever made."""

    def __init__(self, num_layers: int, size: int, *, normalize: bool = False) -> None:
        super().__init__(num_layers, size, normalize=normalize)
        self.logits = nn.Parameter(torch.zeros(num_layers), requires_grad=num_layers > 1)

    @override
    def weights(self) -> Tensor:
        return torch.softmax(self.logits, dim=0)

    @override
    def _join(self, layers: list[Tensor], lengths: Tensor | None) -> Tensor:
        del lengths  # 0 stays 0
        if len(layers) == 1:
            return self._prepare(layers[0])
        weights = self.weights()
        total = self._prepare(layers[0]) * weights[0]
        for layer, weight in zip(layers[1:], weights[1:], strict=True):
            total = torch.addcmul(total, self._prepare(layer), weight)
        return total
