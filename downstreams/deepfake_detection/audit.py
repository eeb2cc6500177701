"""How well cues that have nothing to do with speech synthesis separate the classes: each must stay near 50 %.

Paper: Müller et al. 2021, "Speech is silver, silence is golden", arXiv:2106.12914.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from downstreams.deepfake_detection.conditioning import SAMPLE_RATE, frame_levels
from downstreams.deepfake_detection.plan import BONA_FIDE
from speechssl.audio import read_audio
from speechssl.metric.detection import equal_error_rate
from speechssl.task import TaskData
from speechssl.types import Utterance

SILENCE_DB = 20.0
"""Frames this far below the loudest count as silence at the ends; stricter than the trimming, to see what it left."""


def _duration(waveform: Tensor) -> float:
    return waveform.numel() / SAMPLE_RATE


def _level(waveform: Tensor) -> float:
    return float(10 * waveform.square().mean().clamp(min=1e-12).log10())


def _leading_silence(waveform: Tensor) -> float:
    levels = frame_levels(waveform)
    return float((levels >= levels.max() - SILENCE_DB).nonzero()[0, 0])


def _trailing_silence(waveform: Tensor) -> float:
    return _leading_silence(waveform.flip(0))


def _offset(waveform: Tensor) -> float:
    return float(waveform.mean())


def _bandwidth(waveform: Tensor) -> float:
    """The frequency below which 99.9 % of the power lies, Hz."""
    power = torch.fft.rfft(waveform).abs().square().cumsum(0)
    at = int(torch.searchsorted(power, 0.999 * power[-1:]))
    return at * SAMPLE_RATE / waveform.numel()


CUES: dict[str, Callable[[Tensor], float]] = {
    "duration": _duration,
    "level": _level,
    "leading silence": _leading_silence,
    "trailing silence": _trailing_silence,
    "mean (DC offset)": _offset,
    "bandwidth": _bandwidth,
}


def shortcut_audit(data: TaskData, *, split: str = "test") -> dict[str, float]:
    """The equal error rate of each trivial cue as a detector, between 0 and 1; 0.5 = it says nothing.

    'all together' is a least-squares combination of the cues, fitted on train and measured on `split`.
    """
    scores = {name: _cues(data.splits[name]) for name in ("train", split)}
    labels = {name: _real(data.splits[name]) for name in ("train", split)}
    rates = {name: _rate(scores[split][:, i], labels[split]) for i, name in enumerate(CUES)}
    centre, spread = scores["train"].mean(axis=0), scores["train"].std(axis=0)
    spread = np.where(spread > 1e-9, spread, 1.0)
    inputs = {name: np.c_[(cues - centre) / spread, np.ones(len(cues))] for name, cues in scores.items()}
    weights = np.linalg.lstsq(inputs["train"], labels["train"] / labels["train"].mean() - 1.0, rcond=None)[0]
    rates["all together"] = _rate(inputs[split] @ weights, labels[split])
    return rates


def _cues(utterances: Sequence[Utterance]) -> np.ndarray:
    waveforms = (read_audio(u.path, sample_rate=SAMPLE_RATE) for u in utterances)
    return np.array([[cue(waveform) for cue in CUES.values()] for waveform in waveforms])


def _real(utterances: Sequence[Utterance]) -> np.ndarray:
    return np.array([u.labels["attack"] == BONA_FIDE for u in utterances])


def _rate(scores: np.ndarray, real: np.ndarray) -> float:
    # Where all scores are equal, ties must not decide: interpolation gives 0.5.
    return equal_error_rate(scores[real], scores[~real], interpolate=True)[0]
