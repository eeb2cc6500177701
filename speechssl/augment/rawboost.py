"""RawBoost: what telephones, coders and microphones do to speech, from the waveform alone.

Three disturbances, eight ways to join them: convolution with notches, of the waveform and of its powers (1); impulses
that follow the signal (2); stationary coloured noise that doesn't (3).

S samples.
Paper: Tak et al. 2022, sec. 3, arXiv:2111.04433; what it leaves open as in `TakHemlata/RawBoost-antispoofing`, whose
draws came from numpy's global generator.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import fftconvolve, firwin
from torch import Tensor

from speechssl.errors import ConfigError

Floats = NDArray[np.float64]
Range = tuple[float, float]

SERIES: Mapping[int, tuple[int, ...]] = {
    1: (1,),
    2: (2,),
    3: (3,),
    4: (1, 2, 3),
    5: (1, 2),
    6: (1, 3),
    7: (2, 3),
}
"""What follows what in each algorithm; 8 is the sum of 1 and 2."""
PARALLEL = 8
RESPONSE_BINS = 512
EDGE = 1e-3  # Hz that the edges of a notch keep from 0 and from half the sample rate


@dataclass(frozen=True)
class RawBoostConfig:
    """Ranges that are drawn from; the defaults are those of the published systems."""

    notches: int = 5
    """Band-stop filters, one after the other."""
    centre: Range = (20.0, 8_000.0)
    """Of a notch, Hz; half the sample rate at most."""
    width: Range = (100.0, 1_000.0)
    """Of a notch, Hz."""
    taps: tuple[int, int] = (10, 100)
    """Of each filter; even numbers become the next odd one."""
    gain_db: Range = (0.0, 0.0)
    """Of the whole filter at its loudest frequency."""
    order: int = 5
    """Highest power of the waveform that is added; 1 = no distortion."""
    distortion_db: Range = (5.0, 20.0)
    """How much less gain the powers from 2 on have."""
    impulses: float = 10.0
    """Most samples that impulses hit, percent."""
    impulse_gain: float = 2.0
    """Of an impulse over its sample, at most."""
    snr_db: Range = (10.0, 40.0)
    """Of the waveform over the stationary noise."""

    def __post_init__(self) -> None:
        if self.notches < 1 or self.order < 1 or self.taps[0] < 2 or not 0 <= self.impulses <= 100:
            raise ConfigError(
                f"`rawboost` needs a notch, an order of 1, 2 taps or more, and 0 to 100 percent of impulses, but has "
                f"{self.notches}, {self.order}, {self.taps[0]} and {self.impulses}."
            )


DEFAULT = RawBoostConfig()


def rawboost(
    waveform: Tensor,
    algorithm: int,
    *,
    sample_rate: int,
    generator: torch.Generator,
    config: RawBoostConfig = DEFAULT,
) -> Tensor:
    """Disturbs one utterance.

    Args:
        waveform: (S,), in [-1, 1].
        algorithm: 1 convolution, 2 impulses, 3 noise, 4 all in series, 5 = 1 and 2, 6 = 1 and 3, 7 = 2 and 3, 8 = the
            sum of 1 and 2. SSL-AASIST takes 5 for telephony (ASVspoof 2021 LA) and 3 for coded speech (DF).
        sample_rate: Hz.
        generator: on the CPU; all draws are its.

    Returns:
        (S,) float32 on the device of `waveform`.

    Raises:
        ConfigError: there is no such algorithm.
    """
    if algorithm != PARALLEL and algorithm not in SERIES:
        raise ConfigError(f"`algorithm` of RawBoost must be 1 to {PARALLEL}, but is {algorithm}.")
    given = waveform.detach().cpu().double().numpy()
    if algorithm == PARALLEL:
        first = convolve(given, sample_rate=sample_rate, generator=generator, config=config)
        found = _limit(first + strike(given, generator=generator, config=config))
    else:
        found = given
        for part in SERIES[algorithm]:
            if part == 1:
                found = convolve(found, sample_rate=sample_rate, generator=generator, config=config)
            elif part == 2:
                found = strike(found, generator=generator, config=config)
            else:
                found = add_coloured(found, sample_rate=sample_rate, generator=generator, config=config)
    return torch.from_numpy(found).to(waveform.device, torch.float32)


def convolve(waveform: Floats, *, sample_rate: int, generator: torch.Generator, config: RawBoostConfig) -> Floats:
    """Linear and non-linear convolutive noise: the waveform and its powers, each through notches of its own, (S,).

    Of mean 0; scaled to a peak of 1 where it is above.
    """
    total = np.zeros_like(waveform)
    for power in range(1, config.order + 1):
        low, high = config.gain_db
        if power > 1:
            low, high = low - config.distortion_db[0], high - config.distortion_db[1]
        filtered = apply_filter(waveform**power, draw_notches((low, high), sample_rate, generator, config))
        total = total + filtered
    return _limit(total - total.mean())


def strike(waveform: Floats, *, generator: torch.Generator, config: RawBoostConfig) -> Floats:
    """Impulsive signal-dependent noise: a few samples become up to (1 + `impulse_gain`) times as large, (S,).

    Scaled to a peak of 1 where it is above.
    """
    share = _draw((0.0, config.impulses), generator) / 100
    places = torch.randperm(len(waveform), generator=generator)[: int(len(waveform) * share)].numpy()
    factors = (2 * torch.rand(2, len(places), generator=generator, dtype=torch.float64) - 1).prod(dim=0).numpy()
    found = waveform.copy()
    found[places] += config.impulse_gain * waveform[places] * factors
    return _limit(found)


def add_coloured(waveform: Floats, *, sample_rate: int, generator: torch.Generator, config: RawBoostConfig) -> Floats:
    """Stationary signal-independent noise: white noise through notches, at a drawn ratio of powers, (S,)."""
    white = torch.randn(len(waveform), generator=generator, dtype=torch.float64).numpy()
    noise = apply_filter(white, draw_notches(config.gain_db, sample_rate, generator, config))
    ratio = 10 ** (_draw(config.snr_db, generator) / 20)
    noise *= float(np.linalg.norm(waveform) / np.linalg.norm(noise)) / ratio
    return waveform + noise


def draw_notches(gain_db: Range, sample_rate: int, generator: torch.Generator, config: RawBoostConfig) -> Floats:
    """Draws a filter with notches."""
    half = sample_rate / 2
    drawn = []
    for _ in range(config.notches):
        centre = _draw((config.centre[0], min(config.centre[1], half)), generator)
        width, taps = _draw(config.width, generator), int(_draw(config.taps, generator))
        drawn.append((centre, width, taps + 1 - taps % 2))
    return notch_filter(drawn, gain_db=_draw(gain_db, generator), sample_rate=sample_rate)


def notch_filter(notches: Sequence[tuple[float, float, int]], *, gain_db: float, sample_rate: int) -> Floats:
    """Band-stop filters in series, with linear phase.

    Args:
        notches: centre (Hz), width (Hz) and taps (odd) of each.
        gain_db: at the loudest frequency.

    Returns:
        (taps,), an odd number.
    """
    joined: Floats = np.ones(1)
    for centre, width, taps in notches:
        edges = [max(centre - width / 2, EDGE), min(centre + width / 2, sample_rate / 2 - EDGE)]
        joined = np.convolve(firwin(taps, edges, window="hamming", fs=sample_rate), joined)
    response = np.abs(np.fft.rfft(joined, 2 * RESPONSE_BINS)[:RESPONSE_BINS])
    scaled: Floats = 10 ** (gain_db / 20) * joined / response.max()
    return scaled


def apply_filter(waveform: Floats, taps: Floats) -> Floats:
    """Filters (S,), zeros beyond its ends; ahead by one sample of no delay, as in the published code."""
    start = (len(taps) + 1) // 2
    full: Floats = np.pad(fftconvolve(waveform, taps), (0, 2))
    return full[start : start + len(waveform)]


def _limit(waveform: Floats) -> Floats:
    """Scales to a peak of 1 where it is above."""
    limited: Floats = waveform / max(1.0, float(np.abs(waveform).max(initial=0.0)))
    return limited


def _draw(limits: Range, generator: torch.Generator) -> float:
    low, high = limits
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))
