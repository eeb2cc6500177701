"""What vocoders are trained on: spectral distances, and least-squares games with discriminators.

Shapes: B batch, S samples. Scores and feature maps are lists over the discriminators, as `discriminators` returns them.
Reference: https://github.com/jik876/hifi-gan (models.py, train.py, MIT).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.vocoder.mel import MelConfig, log_mel

RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
"""Samples of Fourier transform, hop and window of the published `stft_loss`."""
SMALLEST = 1e-7
"""Of power spectra before their root: its slope at zero is infinite."""


def mel_loss(found: Tensor, target: Tensor, mel: MelConfig) -> Tensor:
    """Mean absolute difference of log-mel frames; waveforms (B, S) at `mel.sample_rate` -> scalar.

    Paper: Kong et al. 2020, eq. 3, arXiv:2010.05646, where log-mel is with `mel.high` at half the sampling rate.
    """
    return F.l1_loss(log_mel(found, mel.sample_rate, mel), log_mel(target, mel.sample_rate, mel))


def stft_loss(found: Tensor, target: Tensor, resolutions: Sequence[tuple[int, int, int]] = RESOLUTIONS) -> Tensor:
    """Spectral convergence plus mean absolute difference of log magnitudes, the mean over several resolutions.

    Where the target is silent, the first of the two has no meaning and is 0.

    Args:
        found: (B, S).
        target: (B, S).
        resolutions: (n_fft, hop, window) each, samples.

    Returns:
        scalar.

    Paper: Yamamoto et al. 2020, Parallel WaveGAN, sec. 2.2, arXiv:1910.11480.
    """
    total = found.new_zeros(())
    for n_fft, hop, window in resolutions:
        ours, theirs = (_magnitude(x, n_fft, hop, window) for x in (found, target))
        norm = torch.linalg.vector_norm(theirs)
        silent = norm <= 2 * (SMALLEST * theirs.numel()) ** 0.5
        convergence = torch.linalg.vector_norm(theirs - ours) / norm
        total = total + torch.where(silent, 0.0, convergence) + F.l1_loss(ours.log(), theirs.log())
    return total / len(resolutions)


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """What discriminators minimise: real speech shall score 1, synthesised 0; summed over them.

    Paper: Kong et al. 2020, eq. 1, arXiv:2010.05646.
    """
    parts = [(1 - r).square().mean() + f.square().mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(parts).sum()


def adversarial_loss(fake: Sequence[Tensor]) -> Tensor:
    """What a generator minimises: synthesised speech shall score 1; summed over the discriminators.

    Paper: Kong et al. 2020, eq. 2, arXiv:2010.05646.
    """
    return torch.stack([(1 - f).square().mean() for f in fake]).sum()


def feature_matching_loss(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean absolute difference of each feature map, summed over layers and discriminators.

    Paper: Kong et al. 2020, eq. 4, arXiv:2010.05646.
    """
    parts = [F.l1_loss(g, r) for rs, gs in zip(real, fake, strict=True) for r, g in zip(rs, gs, strict=True)]
    return torch.stack(parts).sum()


def _magnitude(waveform: Tensor, n_fft: int, hop: int, window: int) -> Tensor:
    """(B, S) -> (B, F, T)."""
    shape = torch.hann_window(window, device=waveform.device)
    spectrum = torch.stft(waveform, n_fft, hop, window, shape, return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square()).clamp(min=SMALLEST).sqrt()
