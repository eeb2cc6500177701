"""Puts all dimensions of the features on one scale before a head.

Hidden states of a pre-trained model hold most of their energy in few dimensions; a short training of the head then
hardly sees the others. B batch, T frames, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.lengths import lengths_to_padding_mask


class Standardise(nn.Module):
    """Each dimension to mean 0 and deviation 1 over the valid frames: of the batch in training, running in evaluation.

    Paper: Ioffe and Szegedy 2015, algorithm 1 without scale and shift, arXiv:1502.03167.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(size, affine=False)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D) and valid frames (B,) -> (B, T, D), 0 beyond the valid frames."""
        valid = ~lengths_to_padding_mask(lengths, features.size(1))  # (B, T)
        return torch.zeros_like(features).masked_scatter(valid[:, :, None], self.norm(features[valid]))


def batch_norm(norm: nn.BatchNorm1d, vectors: Tensor) -> Tensor:
    """Norms (B, D); a batch of one has no deviation of its own: it gets the running one, in training too."""
    if len(vectors) > 1 or not norm.training:
        return norm(vectors)  # type: ignore[no-any-return]  # nn.Module returns Any
    return F.batch_norm(vectors, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
