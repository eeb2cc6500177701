"""What `infer` needs of the layer that dev chose: how its dimensions are standardised.

T frames, D width.
"""

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """Brings each dimension to mean 0 and deviation 1; nothing of it is trained."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, size: int, frame_rate: float) -> None:
        """
        Args:
            frame_rate: of the features, Hz.
        """
        super().__init__()
        self.frame_rate = frame_rate
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., D) in float32."""
        return (features.float() - self.mean) / self.deviation
