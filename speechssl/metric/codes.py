"""Measures of discrete codes. K labels."""

import torch
from torch import Tensor


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of a histogram (K,): how many labels are in use; 0 for an empty histogram."""
    prob = counts.double() / counts.sum().clamp(min=1)
    return torch.where(counts.sum() > 0, torch.special.entr(prob).sum().exp(), 0.0)
