"""Dropout that draws eight bits per number on a CPU.

torch draws a real number for each there, which takes longer than the products between which dropout stands.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 256
"""Of the probability that eight bits can say."""
ROUNDING = 0.02
"""Relative error of the probability up to which they are used: 0.1 becomes 26 / 256."""


def sample_kept(shape: Sequence[int], prob: float) -> tuple[Tensor, float]:
    """Draws what dropout keeps, on the CPU, from torch's global generator.

    Args:
        shape: of the numbers.
        prob: of dropping one.

    Returns:
        uint8 of that shape, 1 = kept (torch multiplies by bytes faster than by truth values), and what the kept ones
        are to be multiplied by.
    """
    dropped = round(prob * STEPS)
    if dropped in {0, STEPS} or abs(dropped / STEPS - prob) > ROUNDING * prob:
        return torch.empty(shape, dtype=torch.uint8).bernoulli_(1 - prob), 1 / (1 - prob)
    size = torch.Size(shape).numel()
    words = torch.empty(-(-size // 8), dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.uint8)[:size].view(shape) >= dropped
    return kept.view(torch.uint8), STEPS / (STEPS - dropped)


def dropout(x: Tensor, prob: float) -> Tensor:
    """Sets numbers to 0 with probability `prob` and divides the others by what remains of 1, as in training.

    Paper: Srivastava et al. 2014, JMLR 15.
    """
    if x.device.type != "cpu" or not 0 < prob < 1 or torch.compiler.is_compiling():
        return F.dropout(x, prob)
    kept, scale = sample_kept(x.shape, prob)
    return (x * kept).mul_(scale)


class Dropout(nn.Dropout):
    """`dropout` in training, and nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return dropout(x, self.p) if self.training and self.p > 0 else x
