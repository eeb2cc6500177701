"""Pitch shift with the duration kept: a phase vocoder stretches time, and reading faster brings it back.

B batch, S samples, F frequencies, N frames of the spectrum, M of the stretched one.
"""

import math

import torch
from torch import Tensor

from speechssl.lengths import lengths_to_padding_mask

WINDOW = 512
HOP = 128


def shift_pitch(waveform: Tensor, lengths: Tensor, *, cents: Tensor, most: float) -> Tensor:
    """Shifts each utterance by its own amount; frames stay where they are in time, and so does the power.

    Args:
        waveform: (B, S), 0 beyond `lengths`.
        lengths: valid samples, (B,) int64.
        cents: hundredths of a semitone, up or down, (B,).
        most: at least the largest of `cents`, so that the shape does not depend on them.

    Returns:
        (B, S), 0 beyond `lengths`.

    Paper: Flanagan and Golden 1966 (phase vocoder); Laroche and Dolson 1999, sec. 2 (resampling afterwards).
    """
    factor = 2 ** (cents.float() / 1200)  # (B,)
    longest = 2 ** (most / 1200)
    stretched = _stretch(waveform, factor, math.ceil(waveform.size(1) * longest))
    shifted = _read_at(stretched, torch.arange(waveform.size(1), device=waveform.device) * factor[:, None])
    shifted = shifted.masked_fill(lengths_to_padding_mask(lengths, waveform.size(1)), 0.0)
    # A vocoder whose frequencies lose step with each other loses power.
    power, before = shifted.square().sum(dim=1), waveform.square().sum(dim=1)
    return shifted * torch.sqrt(before / power.clamp(min=1e-10))[:, None]


def _stretch(waveform: Tensor, factor: Tensor, size: int) -> Tensor:
    """(B, S) -> (B, size): `factor` (B,) times as long, at the same pitch."""
    window = torch.hann_window(WINDOW, device=waveform.device)
    spectrum = torch.stft(waveform, WINDOW, hop_length=HOP, window=window, return_complex=True)  # (B, F, N)
    magnitude, phase = spectrum.abs(), spectrum.angle()
    count = size // HOP + 1
    at = torch.arange(count, device=waveform.device) / factor[:, None]  # (B, M), in frames of the original
    below = at.long().clamp(max=spectrum.size(2) - 2)
    share = (at - below).clamp(0, 1)[:, None]  # (B, 1, M)
    index = below[:, None].expand(-1, spectrum.size(1), -1)  # (B, F, M)
    loud = torch.lerp(magnitude.gather(2, index), magnitude.gather(2, index + 1), share)
    expected = (torch.arange(spectrum.size(1), device=waveform.device) * 2 * math.pi * HOP / WINDOW)[:, None]
    step = phase.gather(2, index + 1) - phase.gather(2, index) - expected
    step = step - 2 * math.pi * torch.round(step / (2 * math.pi)) + expected
    start = phase[:, :, :1]
    angle = torch.cat((start, start + step[:, :, :-1].cumsum(dim=2)), dim=2)
    return torch.istft(torch.polar(loud, angle), WINDOW, hop_length=HOP, window=window, length=size)


def _read_at(waveform: Tensor, position: Tensor) -> Tensor:
    """Cubic interpolation: (B, S) at (B, S') samples, 0 outside."""
    padded = torch.nn.functional.pad(waveform, (1, 3))
    below = position.long().clamp(max=waveform.size(1))
    x = (position - below).clamp(0, 1)
    before, here, next_, after = (padded.gather(1, below + i) for i in range(4))
    slope, other = (next_ - before) / 2, (after - here) / 2
    return (
        here * (1 + x * x * (2 * x - 3))
        + next_ * x * x * (3 - 2 * x)
        + slope * x * (1 - x) ** 2
        - other * x * x * (1 - x)
    )
