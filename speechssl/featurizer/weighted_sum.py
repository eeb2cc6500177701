"""The learned weighted sum over the hidden states of a frozen upstream.

K layers, B batch, T frames, D width.
Paper: Yang et al. 2021 (SUPERB), sec. 3, arXiv:2105.01051; the weights begin equal, as in S3PRL's `Featurizer`.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.errors import SpeechsslError


class WeightedSum(nn.Module):
    """Softmax-weighted sum of K layers, added up one after the other so that no stack of them is ever made."""

    def __init__(self, num_layers: int, *, normalize: bool = False) -> None:
        """
        Args:
            num_layers: K.
            normalize: whether each layer is first brought to zero mean and unit variance over D (no affine).
        """
        super().__init__()
        if num_layers < 1:
            raise SpeechsslError(f"`num_layers` must be >= 1, but is {num_layers}.")
        self.normalize = normalize
        self.logits = nn.Parameter(torch.zeros(num_layers), requires_grad=num_layers > 1)

    def weights(self) -> Tensor:
        """The weights of the layers, (K,), positive, summing to 1."""
        return torch.softmax(self.logits, dim=0)

    def forward(self, states: Iterable[Tensor]) -> Tensor:
        """Sums the layers.

        Args:
            states: K tensors of equal shape (..., D), such as `HiddenStates`, a list, or one tensor (K, ..., D).

        Returns:
            (..., D) in the type of the weights (float32).
        """
        layers = list(states)
        if len(layers) != self.logits.numel():
            raise SpeechsslError(f"`states` must hold {self.logits.numel()} layers, but holds {len(layers)}.")
        first = layers[0]
        for number, layer in enumerate(layers):
            if layer.shape != first.shape:
                raise SpeechsslError(
                    f"All layers must have one shape, but layer {number} has {tuple(layer.shape)} and the first "
                    f"{tuple(first.shape)}: choose layers of equal width with `features.layers`."
                )
        if len(layers) == 1:
            return self._prepare(first)
        weights = self.weights()
        total = self._prepare(first) * weights[0]
        for layer, weight in zip(layers[1:], weights[1:], strict=True):
            total = torch.addcmul(total, self._prepare(layer), weight)
        return total

    def _prepare(self, layer: Tensor) -> Tensor:
        layer = layer.to(self.logits.dtype)
        return F.layer_norm(layer, layer.shape[-1:]) if self.normalize else layer
