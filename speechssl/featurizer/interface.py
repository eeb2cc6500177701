"""What stands between the layers of an upstream and a head: the interface that all ways of joining layers share.

K layers, B batch, T frames, D width of a layer, E width of the result.
Paper: Shih and Harwath 2024, "Interface design for self-supervised speech models", arXiv:2406.12209; its code is
`atosystem/SSL_Interface`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.errors import SpeechsslError
from speechssl.lengths import lengths_to_padding_mask

Kind = Literal["weighted_sum", "single", "two_sums", "concat", "hierarchical_conv", "attention", "gated_sum"]
"""'weighted_sum' is SUPERB's: one learned weight per layer. 'single': one layer as it is. 'two_sums': two weighted
sums side by side. 'concat': layers side by side. 'hierarchical_conv': convolutions over the layers. 'attention':
weights of the layers that differ from frame to frame. 'gated_sum': gates of the layers, read off their means."""
NEEDS_FRAMES: frozenset[Kind] = frozenset({"hierarchical_conv", "attention", "gated_sum"})
"""The others are linear, so that they commute with the mean over time."""
LEARNS_WEIGHTS: frozenset[Kind] = frozenset({"weighted_sum", "single", "two_sums"})
"""Those whose parameters are nothing but weights of layers."""


class Interface(nn.Module, ABC):
    """Joins K layers of width D."""

    def __init__(self, num_layers: int, size: int, *, normalize: bool = False) -> None:
        """
        Args:
            num_layers: K.
            size: D.
            normalize: whether each layer is first brought to zero mean and unit variance over D (no affine).
        """
        super().__init__()
        if num_layers < 1:
            raise SpeechsslError(f"`num_layers` must be >= 1, but is {num_layers}.")
        if size < 1:
            raise SpeechsslError(f"`size` must be >= 1, but is {size}.")
        self.num_layers = num_layers
        self.size = size
        self.normalize = normalize

    @property
    def hidden_size(self) -> int:
        """E, the width that a head sees."""
        return self.size

    def weights(self) -> Tensor | None:
        """The weight of each layer, (K,), positive, summing to 1; None where layers have no such weight."""
        return None

    def forward(self, states: Iterable[Tensor], lengths: Tensor | None = None) -> Tensor:
        """Joins the layers.

        Args:
            states: K tensors of equal shape (..., D), such as `HiddenStates`, a list, or one tensor (K, ..., D); frames
                beyond `lengths` are 0.
            lengths: valid frames (B,) of layers (B, T, D); None = all of them are.

        Returns:
            (..., E) float32, 0 beyond `lengths`.
        """
        layers = list(states)
        if len(layers) != self.num_layers:
            raise SpeechsslError(f"`states` must hold {self.num_layers} layers, but holds {len(layers)}.")
        first = layers[0]
        for number, layer in enumerate(layers):
            if layer.shape != first.shape:
                raise SpeechsslError(
                    f"All layers must have one shape, but layer {number} has {tuple(layer.shape)} and the first "
                    f"{tuple(first.shape)}: choose layers of equal width with `features.layers`."
                )
        if first.size(-1) != self.size:
            raise SpeechsslError(f"Layers must be {self.size} wide, but are {first.size(-1)}.")
        return self._join(layers, lengths)

    @abstractmethod
    def _join(self, layers: list[Tensor], lengths: Tensor | None) -> Tensor:
        """The layers, K times (..., D) -> (..., E)."""

    def _prepare(self, layer: Tensor) -> Tensor:
        layer = layer.float()
        return F.layer_norm(layer, layer.shape[-1:]) if self.normalize else layer


def silence_padding(features: Tensor, lengths: Tensor | None) -> Tensor:
    """Sets (B, T, E) to 0 beyond `lengths`; whatever adds a bias must, since heads sum over frames."""
    if lengths is None or features.dim() != 3:
        return features
    return features.masked_fill(lengths_to_padding_mask(lengths, features.size(1))[:, :, None], 0.0)
