"""Copy synthesis by linear prediction: an all-pole filter per frame, driven by pulses or noise, as in LPC-10.

Paper: Atal and Hanauer 1971, "Speech analysis and synthesis by linear prediction of the speech wave".
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from downstreams.deepfake_detection.attacks import SAMPLE_RATE, Attack, Source, Synthesiser

Floats = NDArray[np.float64]
ORDER = 18
FRAME, HOP = 480, 160  # samples: 30 and 10 ms
PREEMPHASIS = 0.97
LAGS = (SAMPLE_RATE // 400, SAMPLE_RATE // 60)  # samples: fundamental frequencies of 400 to 60 Hz
VOICED = 0.4  # normalised autocorrelation above which a frame is voiced


def lpc_vocode(waveform: Floats, rng: np.random.Generator) -> Floats:
    """Analyses a 16 kHz waveform (S,) and synthesises it again from gains, pitch and all-pole filters, (S,)."""
    from scipy.signal import lfilter

    emphasised = np.append(waveform[0], waveform[1:] - PREEMPHASIS * waveform[:-1])
    emphasised = np.pad(emphasised, (FRAME // 2, FRAME))
    output, state = np.zeros(waveform.size + HOP), np.zeros(ORDER)
    until_pulse = 0
    for start in range(0, waveform.size, HOP):
        frame = emphasised[start : start + FRAME] * np.hanning(FRAME)
        correlation = np.correlate(frame, frame, "full")[FRAME - 1 :]
        coefficients, error = _levinson(correlation[: ORDER + 1] * (1 + 1e-4 * (np.arange(ORDER + 1) == 0)))
        gain = np.sqrt(max(error, 0.0) / (0.375 * FRAME))  # 0.375 = mean square of the Hann window
        excitation, until_pulse = _excitation(correlation, until_pulse, rng)
        output[start : start + HOP], state = lfilter([gain], coefficients, excitation, zi=state)
    result: Floats = lfilter([1.0], [1.0, -PREEMPHASIS], output)[: waveform.size]
    return result


def _levinson(correlation: Floats) -> tuple[Floats, float]:
    """Solves the normal equations: autocorrelation (ORDER + 1,) -> filter (ORDER + 1,), a[0] = 1, and the residual."""
    from scipy.linalg import solve_toeplitz

    if correlation[0] < 1e-10:
        return np.append(1.0, np.zeros(ORDER)), 0.0
    predictor = solve_toeplitz(correlation[:-1], correlation[1:])
    return np.append(1.0, -predictor), float(correlation[0] - predictor @ correlation[1:])


def _excitation(correlation: Floats, until_pulse: int, rng: np.random.Generator) -> tuple[Floats, int]:
    """One hop of unit-power pulses (voiced) or noise, (HOP,), and the samples left until the next pulse."""
    low, high = LAGS
    lag = low + int(np.argmax(correlation[low:high]))
    if correlation[lag] < VOICED * max(correlation[0], 1e-10):
        return rng.standard_normal(HOP), 0
    pulses = np.zeros(HOP)
    positions = np.arange(min(until_pulse, lag), HOP, lag)
    pulses[positions] = np.sqrt(lag)
    return pulses, int(positions[-1] + lag - HOP) if positions.size else until_pulse - HOP


def _load() -> Synthesiser:
    def synthesise(source: Source) -> tuple[Tensor, int]:
        y = lpc_vocode(source.waveform.numpy().astype(np.float64), np.random.default_rng(source.seed))
        return torch.from_numpy(y.astype(np.float32)), SAMPLE_RATE

    return synthesise


ATTACKS = (Attack("lpc", "linear prediction vocoder", "copy", "scipy", _load),)
