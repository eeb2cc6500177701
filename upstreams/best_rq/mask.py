"""BEST-RQ's masks: every mel frame begins a hidden span with a fixed probability.

Conventions: `mask` is (B, T) bool over mel frames, True = the frame is hidden. B batch, T mel frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.errors import ConfigError


def sample_starts_mask(
    lengths: Tensor,
    size: int,
    *,
    prob: float,
    span: int,
    grid: int = 1,
    generator: torch.Generator,
) -> Tensor:
    """Samples spans of hidden frames, which may overlap and end with the utterance.

    An utterance in which no frame begins a span by chance gets one, at a frame drawn evenly.

    Args:
        lengths: valid frames, (B,) int64, at least 1, on the generator's device.
        size: T.
        prob: of a span beginning at a frame.
        span: frames.
        grid: spans begin at multiples of so many frames, with a probability so many times as large.
        generator: of the draws.

    Returns:
        (B, T) bool; frames at or beyond `lengths` are False.

    Paper: Chiu et al. 2022, sec. 3.1 and 4.1, arXiv:2202.01855.
    """
    if not 0 <= prob * grid <= 1 or span < 1 or grid < 1:
        raise ConfigError(
            "Masking needs 0 <= mask_prob * mask_grid <= 1, mask_length >= 1 and mask_grid >= 1, but they are "
            f"{prob}, {grid} and {span}."
        )
    time = torch.arange(size, device=lengths.device)
    inside = time < lengths[:, None]  # (B, T)
    draw = torch.rand(inside.shape, generator=generator, device=lengths.device)
    draw = draw.masked_fill(~inside | (time % grid != 0), 2.0)
    starts = draw <= draw.amin(dim=1, keepdim=True).clamp(min=prob * grid)
    total = torch.cumsum(starts, dim=1)
    covered = total - F.pad(total, (span, 0))[:, :size] > 0
    return covered & inside
