"""How speech sounds beside its clean reference: PESQ and STOI, by the packages `pesq` and `pystoi`.

Conventions: reference before estimate, both (S,) at 16 kHz, tensors or arrays. Both measures look for speech in the
reference: where it has too little, they are undefined, which is NaN here, never a made-up number; callers count those.

* :func:`wideband_pesq`: mean opinion score of ITU-T P.862.2, about 1.04 to 4.64. A silent estimate has the least.
* :func:`stoi`: intelligibility, about 0 to 1 (Taal et al. 2011, "An algorithm for intelligibility prediction of
  time-frequency weighted noisy speech").

SUPERB's are asteroid's `get_metrics`, by the same packages: wide band at 16 kHz, STOI not extended.

Both hold the interpreter while they compute, so that threads gain nothing: :func:`perceive` has processes, which is why
nothing here imports torch.
"""

import importlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from speechssl.errors import SpeechsslError

if TYPE_CHECKING:
    from torch import Tensor

Waveform: TypeAlias = "Tensor | NDArray[np.float32]"
Heard: TypeAlias = tuple[str, NDArray[np.float32], NDArray[np.float32]]
"""Metric, reference and estimate."""
SAMPLE_RATE = 16_000  # Hz
LEAST_PESQ = 0.999 + 4.0 / (1.0 + math.exp(1.3669 * 0.5 + 3.8224))
"""The mapping of P.862.2 at the raw score -0.5, which is the least."""
PACKAGES = {"pesq": "pesq", "stoi": "pystoi"}
"""Metric -> package."""


def check_installed(metrics: Iterable[str]) -> None:
    """Raises a SpeechsslError that names the extra where a package of one of `metrics` is missing."""
    for metric in metrics:
        if metric in PACKAGES:
            _load(PACKAGES[metric])


def wideband_pesq(reference: Waveform, estimate: Waveform) -> float:
    """MOS-LQO of P.862.2; NaN where the reference has no speech or less than a quarter of a second.

    Raises:
        SpeechsslError: the package is missing.
    """
    package = _load("pesq")
    if not bool(estimate.any()):
        return LEAST_PESQ if _has_speech(package, reference) else math.nan
    try:
        return float(package.pesq(SAMPLE_RATE, _array(reference), _array(estimate), "wb"))
    except (package.NoUtterancesError, package.BufferTooShortError):
        return math.nan


def stoi(reference: Waveform, estimate: Waveform) -> float:
    """Intelligibility; NaN where the reference has fewer than 30 frames (0.4 s) of speech.

    Raises:
        SpeechsslError: the package is missing.
    """
    package = _load("pystoi")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Not enough STFT frames", category=RuntimeWarning)
        try:
            return float(package.stoi(_array(reference), _array(estimate), SAMPLE_RATE, extended=False))
        except RuntimeWarning:
            return math.nan


METRICS: Mapping[str, Callable[[Waveform, Waveform], float]] = {"stoi": stoi, "pesq": wideband_pesq}
_turn = Lock()


def perceive(heard: Sequence[Heard], *, processes: int = 1) -> list[float]:
    """The metric of each reference and estimate.

    Args:
        processes: that share the work; they stay for the next call, and end when they have had none for minutes.
    """
    if processes < 2 or len(heard) < 2:
        return [METRICS[metric](reference, estimate) for metric, reference, estimate in heard]
    from joblib import Parallel, delayed, parallel_config

    # In turn, since threads that serve several devices come here at once, and the processes are the same ones.
    with _turn, parallel_config(backend="loky", inner_max_num_threads=1):
        pool = Parallel(n_jobs=processes, max_nbytes=None)
        found: list[float] = pool(delayed(METRICS[metric])(*both) for metric, *both in heard)
    return found


def _has_speech(package: Any, reference: Waveform) -> bool:
    try:
        package.pesq(SAMPLE_RATE, _array(reference), _array(reference), "wb")
    except (package.NoUtterancesError, package.BufferTooShortError):
        return False
    return True


def _array(waveform: Waveform) -> NDArray[np.float64]:
    return (waveform if isinstance(waveform, np.ndarray) else waveform.detach().cpu().numpy()).astype(np.float64)


def _load(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise SpeechsslError(
            f"The package '{package}' is missing: install `speechssl[perceptual]`, or leave it out of `metrics`."
        ) from error
