"""Weights of the layers that differ from frame to frame.

K layers, B batch, T frames, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from speechssl.featurizer.interface import Interface


class LayerAttention(Interface):
    """A weighted sum whose weights a learned query of each layer draws from what the layer says of the frame.

    The score of a layer is its bias plus its query times the frame, brought to zero mean and unit variance and divided
    by the root of D, as in scaled dot-product attention (Vaswani et al. 2017, sec. 3.2.1, arXiv:1706.03762). Queries
    begin at 0, so that it begins as `WeightedSum` does. It is our own: Shih and Harwath 2024 (arXiv:2406.12209), whose
    'CLS pooling' makes weights depend on the frame too, run a transformer layer over the layers of each frame.
    """

    def __init__(self, num_layers: int, size: int, *, normalize: bool = False) -> None:
        super().__init__(num_layers, size, normalize=normalize)
        trained = num_layers > 1
        self.logits = nn.Parameter(torch.zeros(num_layers), requires_grad=trained)
        self.query = nn.Parameter(torch.zeros(num_layers, size), requires_grad=trained)

    def attend(self, layers: list[Tensor]) -> Tensor:
        """K layers (..., D) -> the weights of each frame, (..., K)."""
        scores = [
            F.layer_norm(layer.float(), layer.shape[-1:]) @ query / self.size**0.5
            for layer, query in zip(layers, self.query, strict=True)
        ]
        return torch.softmax(torch.stack(scores, dim=-1) + self.logits, dim=-1)

    @override
    def _join(self, layers: list[Tensor], lengths: Tensor | None) -> Tensor:
        del lengths  # 0 stays 0
        weights = self.attend(layers)[..., None].unbind(dim=-2)  # K of (..., 1)
        total = self._prepare(layers[0]) * weights[0]
        for layer, weight in zip(layers[1:], weights[1:], strict=True):
            total = torch.addcmul(total, self._prepare(layer), weight)
        return total
