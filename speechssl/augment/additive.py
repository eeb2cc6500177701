"""Additive noise at a chosen ratio of powers.

B batch, S samples.
"""

import torch
from torch import Tensor

from speechssl.lengths import lengths_to_padding_mask


def coloured_noise(like: Tensor, *, generator: torch.Generator) -> Tensor:
    """Gaussian noise whose power falls as 1 / frequency^a, `a` drawn between 0 (white) and 2 (brown) per utterance.

    Args:
        like: (B, S), whose shape and device it takes.
        generator: on the CPU or that device.
    """
    device = generator.device
    white = torch.randn(like.shape, generator=generator, device=device)
    slope = torch.rand(len(like), 1, generator=generator, device=device)  # of the amplitude: half that of the power
    spectrum = torch.fft.rfft(white)  # (B, S / 2 + 1)
    bins = torch.arange(spectrum.size(1), device=device).clamp(min=1)
    noise: Tensor = torch.fft.irfft(spectrum * bins**-slope, n=like.size(1))
    return noise.to(like.device)


def add_noise(waveform: Tensor, lengths: Tensor, noise: Tensor, *, snr_db: Tensor) -> Tensor:
    """Mixes noise in.

    Args:
        waveform: (B, S), 0 beyond `lengths`.
        lengths: valid samples, (B,) int64.
        noise: (B, S).
        snr_db: signal over noise, of the powers of the valid samples, (B,).

    Returns:
        (B, S), 0 beyond `lengths`.
    """
    noise = noise.masked_fill(lengths_to_padding_mask(lengths, waveform.size(1)), 0.0)
    signal, disturbing = waveform.square().sum(dim=1), noise.square().sum(dim=1)  # (B,)
    gain = torch.sqrt(signal / disturbing.clamp(min=1e-10) * 10 ** (-snr_db / 10))
    return waveform + gain[:, None] * noise
