"""Positions as sines and cosines.

T frames, D width.
"""

import torch
from torch import Tensor


def sinusoidal_positions(frames: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """Sines in the even channels and cosines in the odd ones, of frequencies from 1 down to 1 / 10000.

    Returns:
        (T, D) float32.

    Paper: Vaswani et al. 2017, sec. 3.5, arXiv:1706.03762.
    """
    time = torch.arange(frames, device=device, dtype=torch.float64)[:, None]
    pair = torch.arange(width, device=device).div(2, rounding_mode="floor").double()
    angle = time * torch.pow(10_000.0, -2.0 * pair / width)  # (T, D)
    even = torch.arange(width, device=device) % 2 == 0
    return torch.where(even, angle.sin(), angle.cos()).float()
