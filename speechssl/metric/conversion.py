"""How far converted speech is from the target speaker's own recording of the same sentence.

Metrics
-------
* mel-cepstral distortion, MCD, dB: 10 / ln 10 sqrt(2 sum (c - c')^2) of mel-cepstra (`mel_cepstrum`), the mean over
  the path of dynamic time warping between the frames that are louder than 20 dB below the utterance's mean power.
  c0 counts, as in S3PRL, so that loudness does; `energy=False` leaves it out, as much other work does.
* F0 RMSE, Hz, and F0 correlation (Pearson's), over the path between the voiced frames of both.
* difference of duration, DDUR, s: what is left of both once the silence at their ends (60 dB below the loudest frame)
  is cut. Silence excluded, so that a recording's margins do not count.

A measure that does not exist for a pair (silence, nothing voiced, a constant F0) is None and never NaN; `undefined`
says why.

Reference: S3PRL `downstream/a2o-vc-vcc2020/vc_evaluate.py`. Two things differ. Its path comes from `fastdtw`, which
searches near the path of a coarser one; ours is the best one (the same steps, all of weight 1), so that the sum of the
distances along it is never above. Its mel-cepstra come from pysptk; ours from the same recursion as a matrix.

Papers: Kubichek 1993, "Mel-cepstral distance measure for objective speech quality assessment", PACRIM; Yi et al. 2020,
"Voice Conversion Challenge 2020", DOI 10.21437/VCC_BC.2020-14; Tsai et al. 2022, SUPERB-SG, arXiv:2203.06849.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from speechssl.alignment.dtw import WarpSettings, frame_distances, warp_path
from speechssl.errors import SpeechsslError
from speechssl.metric.mel_cepstrum import LEAST_SECONDS, Analysis, Floats, WorldSettings, analyse

STEPS = WarpSettings("symmetric1")
MEASURES = ("mcd", "f0_rmse", "f0_correlation", "ddur")
POWER = -20.0
"""dB beside the mean power, above which a frame is speech."""
MARGIN = 60.0
"""dB below the loudest frame, below which the ends of a recording are silence."""
SILENT = 1.0 / 32_768.0
"""A recording without any sample of this size is silent: 16 bits hold no smaller one."""
MOST_CELLS = 40_000_000
"""Frames times frames of an alignment: 31 s against as much, about 1 GB."""


@dataclass(frozen=True)
class ConversionMeasures:
    """How far apart two recordings of one sentence are."""

    mcd: float | None = None
    """dB."""
    f0_rmse: float | None = None
    """Hz."""
    f0_correlation: float | None = None
    ddur: float | None = None
    """Seconds."""
    undefined: Mapping[str, str] = field(default_factory=dict)
    """Measure -> why it does not exist here, in a sentence."""


@dataclass(frozen=True)
class Recording:
    """What is compared of a recording."""

    duration: float | None
    """Seconds without the silence at the ends; None where nothing can be measured."""
    analysis: Analysis | None
    unfit: str = ""
    """Why nothing can be measured, such as 'is silent'; '' = something can."""


def analyse_recording(
    waveform: Floats, sample_rate: int, *, f0_range: tuple[float, float], settings: WorldSettings | None = None
) -> Recording:
    """Analyses a recording once, to be compared with several; arguments as `compare_recordings`."""
    samples = np.asarray(waveform, dtype=np.float64)
    unfit = _unfit(samples, sample_rate)
    if unfit:
        return Recording(None, None, unfit)
    return Recording(speech_duration(samples, sample_rate), analyse(samples, sample_rate, f0_range, settings))


def compare_recordings(
    converted: Floats,
    reference: Floats,
    sample_rate: int,
    *,
    f0_range: tuple[float, float],
    settings: WorldSettings | None = None,
    energy: bool = True,
) -> ConversionMeasures:
    """Compares a conversion with the target's own recording of the same sentence.

    Args:
        converted: (S,) in [-1, 1].
        reference: (S',) in [-1, 1].
        sample_rate: of both, Hz.
        f0_range: in which the target's F0 is looked for, Hz; `mel_cepstrum.find_f0_range` finds it.
        settings: of the analysis; None = S3PRL's.
        energy: whether c0 counts in the MCD.

    Raises:
        SpeechsslError: samples that are not finite, or `pyworld` is missing.
    """
    first, second = (
        analyse_recording(samples, sample_rate, f0_range=f0_range, settings=settings)
        for samples in (converted, reference)
    )
    return compare_analysed(first, second, energy=energy)


def compare_analysed(converted: Recording, reference: Recording, *, energy: bool = True) -> ConversionMeasures:
    """As `compare_recordings`, of what was analysed with one sampling rate, range of F0 and settings."""
    for name, recording in (("conversion", converted), ("reference", reference)):
        if recording.unfit:
            return ConversionMeasures(undefined=dict.fromkeys(MEASURES, f"the {name} {recording.unfit}"))
    first, second = converted.analysis, reference.analysis
    if first is None or second is None or converted.duration is None or reference.duration is None:
        raise SpeechsslError("A recording to be compared must be analysed, or say in `unfit` why it can't be.")
    undefined: dict[str, str] = {}
    mcd = _distortion(first, second, energy, undefined)
    f0_rmse, f0_correlation = _compare_f0(first, second, undefined)
    return ConversionMeasures(mcd, f0_rmse, f0_correlation, abs(converted.duration - reference.duration), undefined)


def mel_cepstral_distortion(first: Floats, second: Floats) -> Floats:
    """dB between aligned mel-cepstra, (L, D) and (L, D) -> (L,)."""
    squares = np.square(first - second).sum(axis=1)
    return np.asarray(10.0 / math.log(10.0) * np.sqrt(2.0 * squares))


def speech_duration(waveform: Floats, sample_rate: int) -> float:
    """Seconds between the silences at the ends of a recording (S,); frames of 2048 samples every 512, as librosa's."""
    import librosa

    trimmed, _ = librosa.effects.trim(y=waveform, top_db=MARGIN)
    return len(trimmed) / sample_rate


def _unfit(samples: Floats, sample_rate: int) -> str:
    """Why nothing can be measured on a recording; '' = something can."""
    if not np.isfinite(samples).all():
        raise SpeechsslError("A recording to be compared must be finite, but has samples that are NaN or infinite.")
    if samples.size < LEAST_SECONDS * sample_rate:
        return f"is shorter than {LEAST_SECONDS} s"
    if np.abs(samples).max() < SILENT:
        return "is silent"
    return ""


def _distortion(first: Analysis, second: Analysis, energy: bool, undefined: dict[str, str]) -> float | None:
    begin = 0 if energy else 1
    loud = [a.mel_cepstrum[a.power > POWER][:, begin:] for a in (first, second)]
    path = _align(*loud)
    if path is None:
        undefined["mcd"] = "the recordings are too long to be aligned"
        return None
    return float(mel_cepstral_distortion(loud[0][path[:, 0]], loud[1][path[:, 1]]).mean())


def _compare_f0(
    first: Analysis, second: Analysis, undefined: dict[str, str]
) -> tuple[float, float | None] | tuple[None, None]:
    names = ("f0_rmse", "f0_correlation")
    for name, analysis in (("conversion", first), ("reference", second)):
        if not analysis.voiced.any():
            undefined.update(dict.fromkeys(names, f"the {name} has no voiced frame"))
            return None, None
    path = _align(first.mel_cepstrum[first.voiced], second.mel_cepstrum[second.voiced])
    if path is None:
        undefined.update(dict.fromkeys(names, "the recordings are too long to be aligned"))
        return None, None
    aligned = [a.f0[a.voiced][path[:, k]] for k, a in enumerate((first, second))]
    error = float(np.sqrt(np.mean(np.square(aligned[0] - aligned[1]))))
    deviations = [values - values.mean() for values in aligned]
    lengths = [float(np.linalg.norm(d)) for d in deviations]
    # A mean of equal numbers may be off by a rounding, which is no change of F0.
    if min(lengths) < 1e-9 * len(path):
        undefined["f0_correlation"] = "the F0 of one recording never changes"
        return error, None
    correlation = float(deviations[0] @ deviations[1]) / (lengths[0] * lengths[1])
    return error, max(-1.0, min(1.0, correlation))


def _align(first: Floats, second: Floats) -> NDArray[np.int64] | None:
    """(L, 2) pairs of frames along the best path; None where there would be too many cells."""
    if len(first) * len(second) > MOST_CELLS:
        return None
    costs = frame_distances(torch.from_numpy(first), torch.from_numpy(second), distance="euclidean")
    return warp_path(costs, settings=STEPS).numpy()
