"""Fixed band-pass filters whose bands are equally wide in mel.

C filters.
Paper: Ravanelli and Bengio 2018 (SincNet), eq. 4 to 7, arXiv:1808.00158; not trained and next to each other in mel, as
in RawNet2 for spoofing (Tak et al. 2021, arXiv:2011.01108) and in AASIST (`clovaai/aasist`, `models/AASIST.py`).
"""

import torch
from torch import Tensor


def sinc_filters(channels: int, kernel: int, *, sample_rate: int) -> Tensor:
    """Differences of two windowed low-pass filters, whose edges divide 0 Hz to half the sample rate evenly in mel.

    Args:
        channels: C.
        kernel: samples of each filter; odd.
        sample_rate: Hz.

    Returns:
        (C, 1, kernel) float32, as `torch.nn.functional.conv1d` takes them.
    """
    top = 2595 * torch.log10(torch.tensor(1 + sample_rate / 2 / 700, dtype=torch.float64))
    mel = torch.linspace(0, 1, channels + 1, dtype=torch.float64) * top
    edges = 2 * 700 * (10 ** (mel / 2595) - 1) / sample_rate  # (C + 1,), 1 = half the sample rate
    at = torch.arange(kernel, dtype=torch.float64) - (kernel - 1) / 2
    low_pass = edges[:, None] * torch.sinc(edges[:, None] * at)  # (C + 1, kernel)
    window = torch.hamming_window(kernel, periodic=False, dtype=torch.float64)
    return (low_pass.diff(dim=0) * window)[:, None].float()
