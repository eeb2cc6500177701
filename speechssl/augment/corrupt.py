"""A second, disturbed view of waveforms whose frames stay where they are: pitch, room and noise.

B batch, S samples.
"""

import torch
from torch import Tensor

from speechssl.augment.additive import add_noise, coloured_noise
from speechssl.augment.config import CorruptConfig
from speechssl.augment.pitch import shift_pitch
from speechssl.augment.reverb import reverberate


def corrupt(
    waveform: Tensor,
    lengths: Tensor,
    noise: Tensor | None,
    *,
    config: CorruptConfig,
    sample_rate: int,
    generator: torch.Generator,
) -> Tensor:
    """Disturbs a batch.

    Args:
        waveform: (B, S), 0 beyond `lengths`.
        lengths: valid samples, (B,) int64.
        noise: recorded, (B, S), or None.
        sample_rate: Hz.
        generator: on the CPU or the device of `waveform`.

    Returns:
        (B, S), 0 beyond `lengths`.
    """

    def between(low: float, high: float) -> Tensor:
        draw = torch.rand(len(waveform), generator=generator, device=generator.device)
        return (low + (high - low) * draw).to(waveform.device)

    def some(disturbed: Tensor, prob: float) -> Tensor:
        return torch.where((between(0.0, 1.0) < prob)[:, None], disturbed, x)

    x = waveform
    if config.pitch_prob > 0:
        most = config.pitch_cents
        x = some(shift_pitch(x, lengths, cents=between(-most, most), most=most), config.pitch_prob)
    if config.reverb_prob > 0:
        rt60, wet = between(*config.reverb_seconds), between(*config.reverb_wet)
        echoed = reverberate(x, lengths, sample_rate=sample_rate, rt60=rt60, wet=wet, generator=generator)
        x = some(echoed, config.reverb_prob)
    if config.white_prob > 0:
        white = torch.randn(x.shape, generator=generator, device=generator.device).to(x.device)
        x = some(add_noise(x, lengths, white, snr_db=between(*config.white_snr_db)), config.white_prob)
    if config.noise_prob > 0:
        given = coloured_noise(x, generator=generator) if noise is None else noise
        x = some(add_noise(x, lengths, given, snr_db=between(*config.noise_snr_db)), config.noise_prob)
    return x
