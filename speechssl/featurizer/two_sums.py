"""Two learned weighted sums over the hidden states, side by side: for heads with keys and values of their own.

K layers, B batch, T frames, D width.
Paper: Peng et al. 2022, sec. 3.2, arXiv:2210.01273.
"""

import torch
from torch import Tensor, nn
from typing_extensions import override

from speechssl.featurizer.interface import Interface


class TwoSums(Interface):
    """Softmax-weighted sums of K layers with two sets of weights, added up so that no stack of the layers is made."""

    def __init__(self, num_layers: int, size: int, *, normalize: bool = False) -> None:
        super().__init__(num_layers, size, normalize=normalize)
        self.logits = nn.Parameter(torch.zeros(2, num_layers), requires_grad=num_layers > 1)

    @property
    @override
    def hidden_size(self) -> int:
        return 2 * self.size

    @override
    def _join(self, layers: list[Tensor], lengths: Tensor | None) -> Tensor:
        del lengths  # 0 stays 0
        weights = torch.softmax(self.logits, dim=1)  # (2, K)
        first = self._prepare(layers[0])
        sums = [first * own[0] for own in weights]
        for number, layer in enumerate(layers[1:], start=1):
            prepared = self._prepare(layer)
            sums = [torch.addcmul(total, prepared, own[number]) for total, own in zip(sums, weights, strict=True)]
        return torch.cat(sums, dim=-1)
