"""Mel-cepstra of WORLD spectral envelopes, as evaluations of voice conversion and synthesis compare them.

The envelope is CheapTrick's, at the F0 of Harvest (package `pyworld`). Its log becomes a cepstrum, whose frequency axis
is then warped by an all-pass of the first order, which at the right constant is close to the mel scale. The warp is
SPTK's `freqt`, a recursion that is linear in the cepstrum: here it is a matrix, made once for each size and constant.

Conventions: S samples, T frames, K frequencies up to the Nyquist one, M the order, so M + 1 coefficients with c0, the
log gain, in front. Everything is float64.

Papers: Morise, Yokomori and Ozawa 2016, "WORLD: a vocoder-based high-quality speech synthesis system", IEICE Trans.
E99-D(7); Tokuda et al. 1994, "Mel-generalized cepstral analysis", ICSLP, for the warp (its recursion is that of
Oppenheim and Johnson 1972, Proc. IEEE 60(6)); Hirst 2011, "The analysis by synthesis of speech melody", Journal of
Speech Sciences 1(1), for the range of F0. Reference code: SPTK `freqt`, pysptk `sp2mc` and `mcepalpha`, S3PRL
`downstream/a2o-vc-vcc2020/vc_evaluate.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import firwin, lfilter

from speechssl.errors import SpeechsslError

Floats = NDArray[np.float64]

FULL_SCALE = 32_767.0
"""WORLD is fed samples of this size, as S3PRL does."""
WIDE_RANGE = (60.0, 600.0)
"""Hz that F0 is first looked for in, where a speaker's own range is not known."""
TAPS = 255
"""Of the filter that takes away what lies below the voice."""
LEAST_SECONDS = 0.1
"""Harvest needs a few periods of its lowest F0; anything shorter is no utterance."""


@dataclass(frozen=True)
class WorldSettings:
    """How speech is analysed; the defaults are those of S3PRL's any-to-one conversion, and so of SUPERB-SG."""

    order: int = 39
    """M; 24 is common too."""
    alpha: float | None = None
    """Of the all-pass; None = the one nearest to the mel scale at the sampling rate, 0.466 at 24 kHz."""
    frame_period: float = 5.0
    """Milliseconds between frames."""
    low_cut: float = 70.0
    """Hz below which the signal is cut first."""

    def __post_init__(self) -> None:
        if self.order < 1:
            raise SpeechsslError(f"`order` must be >= 1, but is {self.order}.")
        if self.alpha is not None and not -1.0 < self.alpha < 1.0:
            raise SpeechsslError(f"`alpha` must lie within (-1, 1), but is {self.alpha}: the all-pass is unstable.")
        if self.frame_period <= 0:
            raise SpeechsslError(f"`frame_period` must be positive, but is {self.frame_period} ms.")


@dataclass(frozen=True)
class Analysis:
    """What WORLD says of one utterance."""

    f0: Floats
    """(T,) Hz, 0 = unvoiced."""
    mel_cepstrum: Floats
    """(T, M + 1)."""
    power: Floats
    """(T,) dB beside the utterance's mean power."""

    @property
    def voiced(self) -> NDArray[np.bool_]:
        """(T,)."""
        return self.f0 > 0


def analyse(
    waveform: Floats, sample_rate: int, f0_range: tuple[float, float], settings: WorldSettings | None = None
) -> Analysis:
    """F0, mel-cepstra and power of an utterance.

    Args:
        waveform: (S,) in [-1, 1], at least `LEAST_SECONDS` long.
        sample_rate: Hz.
        f0_range: lowest and highest F0 that is looked for, Hz; see `find_f0_range`.

    Raises:
        SpeechsslError: `pyworld` is missing, or the waveform is too short or not finite.
    """
    world, settings = _world(), settings or WorldSettings()
    samples = _cut_low(_checked(waveform, sample_rate) * FULL_SCALE, sample_rate, settings.low_cut)
    f0, times = _harvest(samples, sample_rate, f0_range, settings.frame_period)
    size = int(world.get_cheaptrick_fft_size(sample_rate))
    envelope = world.cheaptrick(samples, f0, times, sample_rate, fft_size=size)  # (T, K)
    alpha = mel_alpha(sample_rate) if settings.alpha is None else settings.alpha
    power = envelope_power(envelope)
    return Analysis(f0, mel_cepstrum(envelope, settings.order, alpha), 10.0 * np.log10(power / power.mean()))


def find_f0_range(waveforms: Iterable[Floats], sample_rate: int) -> tuple[float, float] | None:
    """The range in which a speaker's F0 is to be looked for, Hz: three quarters of the lower quartile of all voiced
    frames to one and a half times the upper one (Hirst 2011), which keeps octave errors out.

    Args:
        waveforms: (S,) each, of one speaker.

    Returns:
        None where nothing is voiced.
    """
    settings = WorldSettings()
    found = []
    for waveform in waveforms:
        samples = _cut_low(_checked(waveform, sample_rate) * FULL_SCALE, sample_rate, settings.low_cut)
        f0, _ = _harvest(samples, sample_rate, WIDE_RANGE, settings.frame_period)
        found.append(f0[f0 > 0])
    voiced = np.concatenate(found) if found else np.empty(0)
    if not voiced.size:
        return None
    lower, upper = np.quantile(voiced, [0.25, 0.75])
    return 0.75 * float(lower), 1.5 * float(upper)


def mel_cepstrum(envelope: Floats, order: int, alpha: float) -> Floats:
    """The mel-cepstrum of power spectra.

    Args:
        envelope: (T, K) power, positive.
        order: M.
        alpha: of the all-pass; 0 leaves the frequencies as they are.

    Returns:
        (T, M + 1).
    """
    cepstrum = np.fft.irfft(np.log(envelope))[:, : envelope.shape[1]]  # (T, K); the other half mirrors it
    cepstrum[:, 0] /= 2.0  # of the amplitude: log|H| = c0 + sum of c_n cos(n w), where log|H|^2 has 2 c_n
    warped: Floats = cepstrum @ warping_matrix(envelope.shape[1], order, alpha).T
    return warped


@cache
def warping_matrix(size: int, order: int, alpha: float) -> Floats:
    """(M + 1, K): what a cepstrum of K coefficients becomes once its frequencies are warped.

    Row m is row m - 1 behind an all-pass, since the warped delay of m samples is that of m - 1 behind one more.
    """
    rows = [alpha ** np.arange(size, dtype=np.float64)]
    rows.append(lfilter([0.0, 1.0 - alpha**2], [1.0, -alpha], rows[0]))
    for _ in range(order - 1):
        rows.append(lfilter([-alpha, 1.0], [1.0, -alpha], rows[-1]))
    return np.stack(rows[: order + 1])


@cache
def mel_alpha(sample_rate: int) -> float:
    """The constant of the all-pass whose warp is nearest to the mel scale (Fant's, 1000 / ln 2 ln(1 + f / 1000)).

    By least squares over 1000 frequencies from 0 up to the Nyquist one, in steps of 0.001, both scales brought to end
    at 1: 0.41 at 16 kHz, 0.455 at 22.05 kHz, 0.466 at 24 kHz, 0.554 at 48 kHz.
    """
    points = np.arange(1000) / 1000.0
    mel = np.log1p(points * sample_rate / 2000.0)
    alphas = np.arange(0.0, 1.0, 0.001)[:, None]
    omega = np.pi * points
    warped = omega + 2.0 * np.arctan2(alphas * np.sin(omega), 1.0 - alphas * np.cos(omega))  # (alphas, points)
    errors = np.square(warped / warped[:, -1:] - mel / mel[-1]).sum(axis=1)
    return round(float(alphas[errors.argmin(), 0]), 3)


def envelope_power(envelope: Floats) -> Floats:
    """(T, K) power spectra -> (T,) power: their mean over the whole circle of frequencies."""
    circle = 2 * (envelope.shape[1] - 1)
    power: Floats = (2.0 * envelope.sum(axis=1) - envelope[:, 0] - envelope[:, -1]) / circle
    return power


def _harvest(
    samples: Floats, sample_rate: int, f0_range: tuple[float, float], frame_period: float
) -> tuple[Floats, Floats]:
    low, high = f0_range
    if not 0 < low < high <= sample_rate / 2:
        raise SpeechsslError(
            f"The range of F0 must rise from above 0 to at most {sample_rate / 2:g} Hz, but is {low:g} to {high:g} Hz."
        )
    f0, times = _world().harvest(samples, sample_rate, f0_floor=low, f0_ceil=high, frame_period=frame_period)
    return f0, times


def _cut_low(samples: Floats, sample_rate: int, cutoff: float) -> Floats:
    taps = firwin(TAPS, cutoff / (sample_rate // 2), pass_zero=False)
    return np.ascontiguousarray(lfilter(taps, 1, samples))


def _checked(waveform: Floats, sample_rate: int) -> Floats:
    samples = np.asarray(waveform, dtype=np.float64)
    if samples.ndim != 1 or samples.size < LEAST_SECONDS * sample_rate:
        raise SpeechsslError(
            f"A waveform to be analysed must have shape (S,) and at least {LEAST_SECONDS} s, but has {samples.shape} "
            f"samples at {sample_rate} Hz."
        )
    if not np.isfinite(samples).all():
        raise SpeechsslError("A waveform to be analysed must be finite, but has samples that are NaN or infinite.")
    return samples


def _world() -> Any:
    try:
        import pyworld
    except ImportError as error:
        raise SpeechsslError("Mel-cepstra and F0 need pyworld: pip install 'speechssl[vc]'.") from error
    return pyworld
