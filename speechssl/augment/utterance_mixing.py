"""Overlapped and noisy speech, made by mixing a stretch of another utterance or of noise into some of a batch.

What is predicted stays that of the clean utterance, the primary one.
B batch, S samples.
Reference: UniSpeech's `utterance_mixing_dataset.py`, which WavLM's authors point to. Differences: there an utterance
may be mixed with itself, and with one that was mixed before; here with another one as it was, so that the order within
a batch does not matter. Padding is left alone here, and counts in no energy.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from speechssl.errors import ConfigError


@dataclass(frozen=True)
class MixingConfig:
    """How much is mixed; the energy ratios and the longest share are those of the papers.

    Papers: Chen et al. 2022 (UniSpeech-SAT), sec. 3.2, arXiv:2110.05752; Chen et al. 2022 (WavLM), sec. IV-B and
    algorithm 1, arXiv:2110.13900.
    """

    prob: float = 0.0
    """Of an utterance to be mixed with another one or with noise."""
    noise_prob: float = 0.0
    """Of what is mixed in to be noise, where there is some."""
    low_snr: float = -5.0
    """Least energy of the primary over that of the other utterance, dB."""
    high_snr: float = 5.0
    """Largest of it, dB."""
    low_noise_snr: float = -5.0
    """Least energy of the primary over that of the noise, dB."""
    high_noise_snr: float = 20.0
    """Largest of it, dB."""
    max_share: float = 0.5
    """Longest stretch, as a share of the primary."""

    def __post_init__(self) -> None:
        for name in ("prob", "noise_prob", "max_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"`{name}` must be >= 0 and <= 1, but is {getattr(self, name)}.")
        for low, high in (("low_snr", "high_snr"), ("low_noise_snr", "high_noise_snr")):
            if getattr(self, low) > getattr(self, high):
                raise ConfigError(
                    f"`{low}` must be <= `{high}`, but they are {getattr(self, low)}, {getattr(self, high)}."
                )


def mix_utterances(
    waveform: Tensor,
    lengths: Tensor,
    config: MixingConfig,
    *,
    generator: torch.Generator,
    noise: Tensor | None = None,
) -> Tensor:
    """Mixes a stretch of another utterance of the batch, or of noise, into some of the utterances.

    The length of the stretch is uniform up to its largest share, and so are its places in both; its gain makes the
    energy per sample of the primary over that of the whole of the other U(low, high) dB.

    Args:
        waveform: (B, S); of a batch of one, only noise is mixed in.
        lengths: valid samples, (B,) int64.
        generator: on the CPU or the device of the waveform; seven draws per utterance, whatever is chosen.
        noise: (B, S), each as long as its utterance; None = none.

    Returns:
        (B, S), with the padding as it was.
    """
    B, S = waveform.shape
    draw = torch.rand(7, B, generator=generator, device=generator.device, dtype=torch.float64).to(waveform.device)
    partner = (torch.arange(B, device=waveform.device) + 1 + (draw[2] * (B - 1)).long()) % B  # (B,) another one
    source, available = waveform[partner], lengths[partner]
    low, high = torch.full_like(draw[0], config.low_snr), torch.full_like(draw[0], config.high_snr)
    chosen = draw[0] < config.prob
    noisy = torch.zeros_like(chosen)
    if noise is not None:
        noisy = draw[1] < config.noise_prob
        source = torch.where(noisy[:, None], noise.to(source.dtype), source)
        available = torch.where(noisy, lengths, available)
        low, high = low.masked_fill(noisy, config.low_noise_snr), high.masked_fill(noisy, config.high_noise_snr)
    if B == 1:
        chosen = chosen & noisy
    longest = torch.minimum((config.max_share * lengths).long(), available)
    length = _uniform(draw[3], longest)
    begin, source_begin = _uniform(draw[4], lengths - length), _uniform(draw[5], available - length)
    ratio = 10 ** ((low + draw[6] * (high - low)) / 10)
    energy, other = _energy(waveform, lengths).double(), _energy(source, available).double()
    gain = torch.where(other > 0, (energy / (other * ratio)).sqrt(), 0.0).to(waveform.dtype)  # (B,)
    time = torch.arange(S, device=waveform.device)[None, :]
    inside = (time >= begin[:, None]) & (time < (begin + length)[:, None]) & chosen[:, None]  # (B, S)
    added = source.gather(1, (time + (source_begin - begin)[:, None]).clamp(0, S - 1))
    return torch.where(inside, waveform + gain[:, None] * added, waveform)


def _uniform(draw: Tensor, most: Tensor) -> Tensor:
    """A whole number from 0 to `most`, from a draw of U[0, 1); both (B,)."""
    return (draw * (most + 1)).long().minimum(most)


def _energy(waveform: Tensor, lengths: Tensor) -> Tensor:
    """Mean square over the valid samples: (B, S), (B,) -> (B,)."""
    inside = torch.arange(waveform.size(1), device=waveform.device)[None, :] < lengths[:, None]
    return torch.where(inside, waveform.float().square(), 0.0).sum(dim=1) / lengths.clamp(min=1)
