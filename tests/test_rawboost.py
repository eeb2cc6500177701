"""RawBoost: each disturbance has the statistics that it is drawn with, and the eight algorithms join them."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import signal

from speechssl.augment.rawboost import (
    DEFAULT,
    RawBoostConfig,
    add_coloured,
    apply_filter,
    convolve,
    draw_notches,
    notch_filter,
    rawboost,
    strike,
)
from speechssl.errors import ConfigError

RATE = 16_000


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def speech(seed: int = 0, size: int = 8_000) -> torch.Tensor:
    level = 0.6 + 0.4 * torch.sin(torch.arange(size) / 700)
    return 0.2 * level * torch.randn(size, generator=seeded(seed)).clamp(-4, 4)


def gain_db(taps: NDArray[np.float64], frequency: float) -> float:
    waves = np.exp(-2j * np.pi * frequency / RATE * np.arange(len(taps)))
    return float(20 * np.log10(abs((taps * waves).sum())))


def test_notches_are_deep_at_their_centres_and_the_rest_has_the_gain() -> None:
    taps = notch_filter([(2_000, 1_000, 99), (6_000, 800, 99)], gain_db=-7.0, sample_rate=RATE)
    assert len(taps) == 197
    np.testing.assert_allclose(taps, taps[::-1], atol=1e-12)
    assert max(gain_db(taps, f) for f in np.arange(512) / 512 * RATE / 2) == pytest.approx(-7.0, abs=1e-9)
    assert gain_db(taps, 2_000) < -25 and gain_db(taps, 6_000) < -20
    assert all(gain_db(taps, f) > -8 for f in (300, 1_000, 4_000, 7_500))
    # Edges beyond both ends of the spectrum are moved inside.
    assert np.isfinite(notch_filter([(20, 1_000, 11), (8_000, 900, 99)], gain_db=0, sample_rate=RATE)).all()


def test_a_filter_is_applied_as_the_published_code_does() -> None:
    x, taps = speech().double().numpy(), draw_notches((0, 0), RATE, seeded(3), DEFAULT)
    padded = np.pad(x, (0, len(taps) + 1))
    expected = signal.lfilter(taps, 1, padded)[(len(taps) + 1) // 2 :][: len(x)]
    np.testing.assert_allclose(apply_filter(x, taps), expected, atol=1e-10)


def test_filters_are_drawn_from_their_ranges() -> None:
    sizes, gains = [], []
    for seed in range(200):
        taps = draw_notches((-5.0, -20.0), RATE, seeded(seed), RawBoostConfig(notches=1))
        sizes.append(len(taps))
        gains.append(max(gain_db(taps, f) for f in np.arange(512) / 512 * RATE / 2))
    assert all(size % 2 and 11 <= size <= 99 for size in sizes)
    assert np.mean(sizes) == pytest.approx(55, abs=6)  # three standard deviations of the mean are 5.5
    assert -20 <= min(gains) < -19 and -6 < max(gains) <= -5
    assert np.mean(gains) == pytest.approx(-12.5, abs=1.0)
    assert np.isfinite(draw_notches((0, 0), 8_000, seeded(0), DEFAULT)).all()


def test_convolution_adds_harmonics_weaker_than_what_they_are_of() -> None:
    tone = 0.9 * np.sin(2 * np.pi * 500 * np.arange(16_000) / RATE)
    levels = {}
    for order in (1, 5):
        found = []
        for seed in range(30):
            out = convolve(tone, sample_rate=RATE, generator=seeded(seed), config=RawBoostConfig(order=order))
            assert abs(out.mean()) < 1e-9 and np.abs(out).max() <= 1 + 1e-12
            power = np.abs(np.fft.rfft(out[2_000:-2_000] * np.hanning(12_000)))
            found.append([power[375 * k - 5 : 375 * k + 6].max() for k in range(1, 6)])  # 12,000 samples: 4/3 Hz a bin
        levels[order] = 20 * np.log10(np.median(np.array(found), axis=0))
    assert (levels[1][1:] < levels[1][0] - 60).all()
    # sin^2 and sin^3 have a half and a quarter of the amplitude in the harmonic, and lose 5 to 20 dB in their filters.
    assert (levels[5][1:3] < levels[5][0] - 10).all() and (levels[5][1:3] > levels[5][0] - 35).all()


def test_impulses_hit_a_few_samples_and_follow_the_signal() -> None:
    x = speech(size=20_000).double().numpy() * 0.3
    shares, ratios = [], []
    for seed in range(200):
        change = strike(x, generator=seeded(seed), config=DEFAULT) / x - 1
        hit = np.abs(change) > 1e-12
        shares.append(hit.mean())
        ratios.append(change[hit])
    assert max(shares) <= 0.1 and np.mean(shares) == pytest.approx(0.05, abs=0.0062)  # three standard deviations
    together = np.concatenate(ratios)
    assert np.abs(together).max() <= 2 and np.mean(together) == pytest.approx(0, abs=0.01)
    assert np.std(together) == pytest.approx(2 / 3, abs=0.01)  # of a product of two uniform ones, twice
    loud = strike(np.ones(1_000), generator=seeded(0), config=DEFAULT)
    assert np.abs(loud).max() == 1.0 and np.median(loud) < 1.0


def test_stationary_noise_has_the_ratio_that_was_drawn_and_its_notches() -> None:
    x = speech().double().numpy()
    ratios, deepest = [], []
    for seed in range(100):
        noise = add_coloured(x, sample_rate=RATE, generator=seeded(seed), config=DEFAULT) - x
        ratios.append(10 * np.log10((x**2).sum() / (noise**2).sum()))
        _, spectrum = signal.welch(noise, RATE, nperseg=256)
        deepest.append(10 * np.log10(np.median(spectrum) / spectrum[2:-2].min()))
    assert 10 <= min(ratios) < 12 and 38 < max(ratios) <= 40
    assert np.mean(ratios) == pytest.approx(25, abs=2.6)  # three standard deviations of the mean
    plain = np.random.default_rng(0).normal(size=8_000)
    _, spectrum = signal.welch(plain, RATE, nperseg=256)
    assert np.median(deepest) > 3 + 10 * np.log10(np.median(spectrum) / spectrum[2:-2].min())


def test_the_algorithms_are_series_and_a_sum_of_the_three() -> None:
    x = speech()
    raw = x.double().numpy()

    def parts(which: tuple[int, ...], seed: int = 5) -> NDArray[np.float64]:
        generator, found = seeded(seed), raw
        for part in which:
            if part == 1:
                found = convolve(found, sample_rate=RATE, generator=generator, config=DEFAULT)
            elif part == 2:
                found = strike(found, generator=generator, config=DEFAULT)
            else:
                found = add_coloured(found, sample_rate=RATE, generator=generator, config=DEFAULT)
        return found

    series = {1: (1,), 2: (2,), 3: (3,), 4: (1, 2, 3), 5: (1, 2), 6: (1, 3), 7: (2, 3)}
    for algorithm, which in series.items():
        found = rawboost(x, algorithm, sample_rate=RATE, generator=seeded(5))
        assert found.dtype == torch.float32 and found.shape == x.shape
        np.testing.assert_allclose(found, parts(which), atol=1e-6)
    generator = seeded(5)
    first = convolve(raw, sample_rate=RATE, generator=generator, config=DEFAULT)
    both = first + strike(raw, generator=generator, config=DEFAULT)
    both /= max(1, np.abs(both).max())
    np.testing.assert_allclose(rawboost(x, 8, sample_rate=RATE, generator=seeded(5)), both, atol=1e-6)


def test_draws_are_the_generators_alone() -> None:
    x = speech()
    torch_state, numpy_state = torch.random.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
    one, again, other = (rawboost(x, 4, sample_rate=RATE, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.allclose(one, other, atol=1e-3)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert repr(np.random.get_state()) == numpy_state  # noqa: NPY002


def test_silence_stays_silent_and_what_is_not_there_is_refused() -> None:
    for algorithm in range(1, 9):
        assert not rawboost(torch.zeros(500), algorithm, sample_rate=RATE, generator=seeded(0)).any()
    with pytest.raises(ConfigError, match="1 to 8, but is 9"):
        rawboost(speech(), 9, sample_rate=RATE, generator=seeded(0))
    with pytest.raises(ConfigError, match="percent of impulses"):
        RawBoostConfig(impulses=101)
