"""Reverberation by artificial rooms: an impulse, and noise that dies away.

B batch, S samples, R samples of the response.
"""

import math

import torch
from torch import Tensor

from speechssl.lengths import lengths_to_padding_mask

LONGEST = 0.5
"""Seconds of a response."""


def reverberate(
    waveform: Tensor, lengths: Tensor, *, sample_rate: int, rt60: Tensor, wet: Tensor, generator: torch.Generator
) -> Tensor:
    """Convolves each utterance with a room of its own, without delay and without a change in power.

    Args:
        waveform: (B, S), 0 beyond `lengths`.
        lengths: valid samples, (B,) int64.
        sample_rate: Hz.
        rt60: time in which the echo falls by 60 dB, seconds, (B,).
        wet: power of the echo over that of the direct sound, (B,).
        generator: on the CPU or the device of `waveform`.

    Returns:
        (B, S), 0 beyond `lengths`.
    """
    size = round(LONGEST * sample_rate)
    tail = torch.randn(len(waveform), size, generator=generator, device=generator.device).to(waveform.device)
    time = torch.arange(size, device=waveform.device) / sample_rate
    tail = tail * torch.exp(-3 * math.log(10) * time / rt60[:, None])  # (B, R)
    tail[:, 0] = 0.0
    response = tail * torch.sqrt(wet / tail.square().sum(dim=1).clamp(min=1e-10))[:, None]
    response[:, 0] = 1.0
    total = waveform.size(1) + size
    spectrum = torch.fft.rfft(waveform, n=total) * torch.fft.rfft(response, n=total)
    echoed: Tensor = torch.fft.irfft(spectrum, n=total)[:, : waveform.size(1)]
    echoed = echoed.masked_fill(lengths_to_padding_mask(lengths, waveform.size(1)), 0.0)
    power, before = echoed.square().sum(dim=1), waveform.square().sum(dim=1)
    return echoed * torch.sqrt(before / power.clamp(min=1e-10))[:, None]
