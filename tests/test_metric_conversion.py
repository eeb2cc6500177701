"""Distances between conversions and the target's own recordings, against the reference's steps written out in loops."""

import math

import librosa
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import firwin, lfilter
from scipy.spatial.distance import cdist
from scipy.stats import pearsonr

from speechssl.errors import SpeechsslError
from speechssl.metric import conversion
from speechssl.metric.conversion import ConversionMeasures, compare_recordings
from speechssl.metric.mel_cepstrum import (
    Analysis,
    WorldSettings,
    analyse,
    find_f0_range,
    mel_alpha,
    mel_cepstrum,
    warping_matrix,
)

Floats = NDArray[np.float64]
pyworld = pytest.importorskip("pyworld")
RANGE = (70.0, 300.0)


def _voice(pitch: float, seconds: float, rate: int = 16_000, seed: int = 0) -> Floats:
    """A gliding harmonic sound between two stretches of near silence."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(pitch + 20 * np.sin(2 * np.pi * (2 + seed) * time)) / rate
    sound = sum(np.sin(n * phase) / n ** (1 + 0.3 * seed) for n in range(1, 20)) * (0.6 + 0.4 * np.sin(20 * time))
    margin = 1e-5 * rng.normal(size=rate // 10)
    return np.concatenate([margin, 0.05 * np.asarray(sound) + 1e-4 * rng.normal(size=time.size), margin])


def _slow_freqt(cepstrum: Floats, order: int, alpha: float) -> Floats:
    """SPTK `freqt`: the recursion over the coefficients, last one first."""
    warped = np.zeros(order + 1)
    for value in cepstrum[::-1]:
        before = warped.copy()
        warped[0] = value + alpha * before[0]
        warped[1] = (1 - alpha**2) * before[0] + alpha * before[1]
        for m in range(2, order + 1):
            warped[m] = before[m - 1] + alpha * (before[m] - warped[m - 1])
    return warped


def _slow_path(first: Floats, second: Floats) -> list[tuple[int, int]]:
    costs = cdist(first, second)
    total = np.full((len(first) + 1, len(second) + 1), math.inf)
    total[0, 0] = 0.0
    for i in range(len(first)):
        for j in range(len(second)):
            total[i + 1, j + 1] = costs[i, j] + min(total[i, j], total[i + 1, j], total[i, j + 1])
    i, j = len(first), len(second)
    path = []
    while i or j:
        path.append((i - 1, j - 1))
        i, j = min(((i - 1, j - 1), (i, j - 1), (i - 1, j)), key=lambda cell: total[cell])
        if (i, j) == (0, 0):
            break
    return path[::-1]


def _slow_measures(converted: Floats, reference: Floats, rate: int, alpha: float) -> tuple[float, float, float, float]:
    """S3PRL `a2o-vc-vcc2020/vc_evaluate.py` step by step, with the best path in place of fastdtw's."""
    found = []
    for samples in (converted, reference):
        cut = lfilter(firwin(255, 70 / (rate // 2), pass_zero=False), 1, samples * 32_767.0)
        f0, times = pyworld.harvest(cut, rate, f0_floor=RANGE[0], f0_ceil=RANGE[1], frame_period=5)
        envelope = pyworld.cheaptrick(cut, f0, times, rate, fft_size=1024)
        rows, power = [], []
        for row in envelope:
            cepstrum = np.fft.irfft(np.log(row))  # all 1024, as pysptk `sp2mc` has it
            cepstrum[0] /= 2
            rows.append(_slow_freqt(cepstrum, 39, alpha))
            power.append((row[0] + row[-1] + 2 * row[1:-1].sum()) / 1024)
        decibels = 10 * np.log10(np.array(power) / np.mean(power))
        found.append((f0, np.array(rows), decibels > -20))
    (f0, frames, loud), (f0_, frames_, loud_) = found
    distances = [
        10 / math.log(10) * math.sqrt(2 * np.sum((frames[loud][i] - frames_[loud_][j]) ** 2))
        for i, j in _slow_path(frames[loud], frames_[loud_])
    ]
    path = _slow_path(frames[f0 > 0], frames_[f0_ > 0])
    pairs = np.array([(f0[f0 > 0][i], f0_[f0_ > 0][j]) for i, j in path])
    error = math.sqrt(np.mean((pairs[:, 0] - pairs[:, 1]) ** 2))
    spoken = [len(librosa.effects.trim(y=samples)[0]) for samples in (converted, reference)]
    return float(np.mean(distances)), error, pearsonr(*pairs.T)[0], abs(spoken[0] - spoken[1]) / rate


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_all_measures_are_those_of_the_reference(rate: int) -> None:
    converted, reference = _voice(120, 0.5, rate), _voice(150, 0.4, rate, seed=1)
    found = compare_recordings(converted, reference, rate, f0_range=RANGE)
    expected = _slow_measures(converted, reference, rate, {16_000: 0.41, 24_000: 0.466}[rate])
    measured = (found.mcd, found.f0_rmse, found.f0_correlation, found.ddur)
    assert measured == pytest.approx(expected, rel=1e-9, abs=1e-9) and not found.undefined


def test_a_recording_is_no_distance_from_itself() -> None:
    voice = _voice(120, 0.5)
    found = compare_recordings(voice, voice, 16_000, f0_range=RANGE)
    assert (found.mcd, found.f0_rmse, found.ddur) == (0.0, 0.0, 0.0)
    assert found.f0_correlation == pytest.approx(1.0, abs=1e-12)


def test_loudness_counts_as_its_logarithm_or_not_at_all() -> None:
    voice = _voice(120, 0.5)
    quiet = analyse(0.5 * voice, 16_000, RANGE).mel_cepstrum
    loud = analyse(voice, 16_000, RANGE).mel_cepstrum
    expected = np.full(len(loud), 10 / math.log(10) * math.sqrt(2) * math.log(2))
    np.testing.assert_allclose(conversion.mel_cepstral_distortion(quiet, loud), expected, atol=1e-3)
    # Exact but for the faintest frames, to which WORLD adds a floor.
    without = compare_recordings(0.5 * voice, voice, 16_000, f0_range=RANGE, energy=False)
    assert without.mcd == pytest.approx(0.0, abs=1e-4)


def test_silence_at_the_ends_is_no_difference_of_duration() -> None:
    voice = _voice(120, 0.5)
    longer = np.concatenate([np.zeros(8_000), voice, np.zeros(16_000)])
    found = compare_recordings(longer, voice, 16_000, f0_range=RANGE)
    assert found.ddur == pytest.approx(0.0, abs=1024 / 16_000)  # frames begin every 512 samples


SILENCE, SHORT, CLICK = np.zeros(16_000), np.ones(100), np.eye(1, 16_000, 8_000)[0]


@pytest.mark.parametrize(
    ("samples", "measure", "why"),
    [
        (SILENCE, "mcd", "the conversion is silent"),
        (SILENCE, "ddur", "the conversion is silent"),
        (SHORT, "mcd", "the conversion is shorter than 0.1 s"),
        (CLICK, "f0_rmse", "the conversion has no voiced frame"),
        (CLICK, "f0_correlation", "the conversion has no voiced frame"),
    ],
    ids=["silence", "silence_duration", "short", "unvoiced", "unvoiced_correlation"],
)
def test_what_does_not_exist_is_none_and_says_why(samples: Floats, measure: str, why: str) -> None:
    found = compare_recordings(samples, _voice(120, 0.5), 16_000, f0_range=RANGE)
    assert getattr(found, measure) is None and found.undefined[measure] == why
    for name in conversion.MEASURES:
        value = getattr(found, name)
        assert (value is None) == (name in found.undefined) and (value is None or math.isfinite(value))


def test_a_constant_pitch_has_no_correlation(monkeypatch: pytest.MonkeyPatch) -> None:
    voice = _voice(120, 0.5)
    flat = analyse(voice, 16_000, RANGE)
    flat = Analysis(np.where(flat.f0 > 0, 110.1, 0.0), flat.mel_cepstrum, flat.power)
    monkeypatch.setattr(conversion, "analyse", lambda *args: flat)
    found = compare_recordings(voice, voice, 16_000, f0_range=RANGE)
    assert (found.f0_rmse, found.f0_correlation) == (0.0, None)
    assert found.undefined == {"f0_correlation": "the F0 of one recording never changes"}


def test_what_is_too_long_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "MOST_CELLS", 100)
    found = compare_recordings(_voice(120, 0.5), _voice(150, 0.5), 16_000, f0_range=RANGE)
    assert found == ConversionMeasures(None, None, None, found.ddur, found.undefined) and found.ddur is not None
    assert set(found.undefined.values()) == {"the recordings are too long to be aligned"}


def test_bad_input_is_a_sentence() -> None:
    voice = _voice(120, 0.5)
    broken = voice.copy()
    broken[100] = np.nan
    with pytest.raises(SpeechsslError, match="to be compared must be finite"):
        compare_recordings(voice, broken, 16_000, f0_range=RANGE)
    with pytest.raises(SpeechsslError, match="must rise from above 0 to at most 8000 Hz, but is 300 to 70 Hz"):
        compare_recordings(voice, voice, 16_000, f0_range=(300, 70))
    with pytest.raises(SpeechsslError, match="`alpha` must lie within"):
        WorldSettings(alpha=1.0)


def test_the_range_of_f0_lies_around_the_voice() -> None:
    low, high = find_f0_range([_voice(120, 0.5), _voice(130, 0.5)], 16_000) or (0.0, 0.0)
    assert 70 < low < 105 and 150 < high < 230
    assert find_f0_range([SILENCE], 16_000) is None


@pytest.mark.parametrize(("rate", "alpha"), [(8_000, 0.312), (16_000, 0.41), (22_050, 0.455), (44_100, 0.544)])
def test_the_warp_is_the_published_one_at_each_rate(rate: int, alpha: float) -> None:
    assert mel_alpha(rate) == alpha  # pysptk's documentation of `mcepalpha`


def test_the_warp_of_one_delay_is_that_of_an_all_pass() -> None:
    alpha = 0.42
    expected = [alpha, *((1 - alpha**2) * (-alpha) ** m for m in range(9))]
    np.testing.assert_allclose(warping_matrix(2, 9, alpha)[:, 1], np.array(expected[:10]), atol=1e-15)
    np.testing.assert_array_equal(warping_matrix(8, 7, 0.0), np.eye(8))


def test_warping_back_gives_the_cepstrum() -> None:
    there, back = warping_matrix(12, 200, 0.3), warping_matrix(201, 11, -0.3)
    np.testing.assert_allclose(back @ there, np.eye(12), atol=1e-12)


def test_the_mel_cepstrum_is_the_log_spectrum_on_the_warped_axis() -> None:
    rng = np.random.default_rng(0)
    cepstrum = rng.normal(size=20) * 0.5 ** np.arange(20)
    omega = np.linspace(0, np.pi, 257)
    amplitude = np.exp(np.cos(np.outer(omega, np.arange(20))) @ cepstrum)
    alpha = 0.41
    warped = omega + 2 * np.arctan2(alpha * np.sin(omega), 1 - alpha * np.cos(omega))
    found = mel_cepstrum(np.square(amplitude)[None], 80, alpha)[0]
    np.testing.assert_allclose(np.cos(np.outer(warped, np.arange(81))) @ found, np.log(amplitude), atol=1e-9)
