"""A sum of the layers in which each utterance opens and closes each layer.

K layers, B batch, T frames, D width.
"""

from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from speechssl.featurizer.interface import Interface


class GatedSum(Interface):
    """Each layer times a gate between 0 and 1, which one linear layer reads off the mean of its valid frames.

    The linear layer is the same for all layers, and the sum is not divided by the gates.

    Paper: Zhang, Wen and Hu 2024, "Audio deepfake detection with self-supervised XLS-R and SLS classifier", doi
    10.1145/3664647.3681345; as its code, `QiShanZhang/SLSforASVspoof-2021-DF`, `model.py`, which takes the output of
    each block: `features.layers` says whether the input of the first one is there too.
    """

    def __init__(self, num_layers: int, size: int, *, normalize: bool = False) -> None:
        super().__init__(num_layers, size, normalize=normalize)
        self.gate = nn.Linear(size, 1)

    @override
    def _join(self, layers: list[Tensor], lengths: Tensor | None) -> Tensor:
        total = torch.zeros_like(layers[0], dtype=torch.float32)
        for layer in layers:
            prepared = self._prepare(layer)
            total = torch.addcmul(total, prepared, torch.sigmoid(cast(Tensor, self.gate(_mean(prepared, lengths)))))
        return total


def _mean(layer: Tensor, lengths: Tensor | None) -> Tensor:
    """Over the valid frames, (..., T, D), 0 beyond `lengths` -> (..., 1, D)."""
    if lengths is None:
        return layer.mean(dim=-2, keepdim=True)
    return layer.sum(dim=-2, keepdim=True) / lengths[:, None, None].to(layer)
