"""How well cues that have nothing to do with speech synthesis separate the classes: each should stay near 50 %.

Where one of them does not, a detector may have learned it, and its error rate says little about speech. Of a large set
a share of each class is heard, chosen by a hash. S samples, T frames, B bands, N utterances, K cues.

Papers: Müller et al. 2021, "Speech is silver, silence is golden", arXiv:2106.12914; Shim et al. 2023, "How to construct
perfect and worse-than-coin-flip spoofing countermeasures", arXiv:2306.00044. Which cues are measured is our choice.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from downstreams.deepfake_detection.conditioning import SAMPLE_RATE, frame_levels
from downstreams.deepfake_detection.plan import BONA_FIDE
from speechssl.audio import read_audio
from speechssl.data.seeds import derive_seed
from speechssl.files import replacing
from speechssl.metric.detection import equal_error_rate
from speechssl.progress import progress
from speechssl.result import MetricValue
from speechssl.task import TaskData
from speechssl.types import Utterance

Floats = NDArray[np.float64]
REVISION = 1
"""Raised when the same set would give other rates."""
HEARD = 500
"""Most utterances of each class and split."""
SILENCE_DB = 20.0
"""Frames this far below the loudest count as silence at the ends; stricter than the trimming, to see what it left."""
QUIET = 0.1
"""The share of frames, the quietest, whose spectrum is that of silence."""
WINDOW = 512  # samples
BANDS = 20
HOLE_DB = 90.0
"""Below the loudest cell of a spectrogram: nothing recorded is so quiet, but codecs and synthesis leave such holes."""
BREAKDOWN = "eer of trivial cues"
SILENCE = "spectrum of silence"
TOGETHER = "all together"


def _duration(waveform: Tensor) -> float:
    return waveform.numel() / SAMPLE_RATE


def _level(waveform: Tensor) -> float:
    return float(10 * waveform.square().mean().clamp(min=1e-12).log10())


def _leading_silence(waveform: Tensor) -> float:
    levels = frame_levels(waveform)
    return float((levels >= levels.max() - SILENCE_DB).nonzero()[0, 0]) if levels.numel() else 0.0


def _trailing_silence(waveform: Tensor) -> float:
    return _leading_silence(waveform.flip(0))


def _level_of_silence(waveform: Tensor) -> float:
    """Of the quietest tenth of the frames, against the loudest one, dB."""
    levels = frame_levels(waveform)
    return float(levels.quantile(QUIET) - levels.max()) if levels.numel() else 0.0


def _offset(waveform: Tensor) -> float:
    return float(waveform.mean())


def _bandwidth(waveform: Tensor) -> float:
    """The frequency below which 99.9 % of the power lies, Hz."""
    power = torch.fft.rfft(waveform).abs().square().cumsum(0)
    at = int(torch.searchsorted(power, 0.999 * power[-1:]))
    return at * SAMPLE_RATE / waveform.numel()


def _share(waveform: Tensor, low: float, high: float) -> float:
    """The power within a band against all, dB."""
    power = torch.fft.rfft(waveform - waveform.mean()).abs().square()
    frequencies = torch.fft.rfftfreq(waveform.numel(), 1 / SAMPLE_RATE)
    inside = power[(frequencies >= low) & (frequencies < high)].sum()
    return float(10 * (inside / power.sum().clamp(min=1e-20)).clamp(min=1e-12).log10())


def _high_band(waveform: Tensor) -> float:
    return _share(waveform, 7_000.0, 8_001.0)


def _low_band(waveform: Tensor) -> float:
    return _share(waveform, 0.0, 80.0)


def _holes(waveform: Tensor) -> float:
    power = _spectrogram(waveform)
    return float((power < power.max() * 10 ** (-HOLE_DB / 10)).float().mean())


def _spectrogram(waveform: Tensor) -> Tensor:
    """Power, (S,) -> (T, WINDOW / 2 + 1)."""
    padded = torch.nn.functional.pad(waveform, (0, max(0, WINDOW - waveform.numel())))
    frames = padded.unfold(0, WINDOW, WINDOW // 2) * torch.hann_window(WINDOW)
    power: Tensor = torch.fft.rfft(frames).abs().square()
    return power


def _zeros(waveform: Tensor) -> float:
    return float((waveform == 0).float().mean())


CUES: dict[str, Callable[[Tensor], float]] = {
    "duration": _duration,
    "level": _level,
    "leading silence": _leading_silence,
    "trailing silence": _trailing_silence,
    "level of silence": _level_of_silence,
    "mean (DC offset)": _offset,
    "bandwidth": _bandwidth,
    "power above 7 kHz": _high_band,
    "power below 80 Hz": _low_band,
    "spectral holes": _holes,
    "samples of 0": _zeros,
}
"""Each is one number; the spectrum of silence and all together are combinations of several, learned on train."""
MORE = {"duration": ("longer", "shorter"), "level": ("louder", "softer"), "level of silence": ("louder", "softer")}
"""What more and less of a cue is called; of the others 'more' and 'less'."""


@dataclass(frozen=True)
class Cue:
    """What one cue alone would score as a detector."""

    rate: float
    """Equal error rate on test, by the direction that train has: 0.5 = it says nothing, more = on test it is the other
    way round."""
    says: str
    """'longer is real', as train has it; or what a combination was learned on."""
    n: int
    """Test utterances heard."""


def audited(data: TaskData, folder: Path) -> dict[str, Cue]:
    """`shortcut_audit`, once: its findings are kept in a file.

    Args:
        folder: for audit.json; what is of another revision or of other audio is written anew.
    """
    path = folder / "audit.json"
    heard = [u for split in ("train", "test") for u in _choose(data.splits[split])]
    key = [REVISION, f"{derive_seed(*(f'{u.path} {u.start} {u.duration}' for u in heard)):016x}"]
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return {name: Cue(**cue) for name, cue in kept["cues"].items()}
    except (OSError, KeyError, TypeError, ValueError):
        pass  # none there yet, or none of ours
    cues = shortcut_audit(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        content = {"key": key, "cues": {name: asdict(cue) for name, cue in cues.items()}}
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return cues


def shortcut_audit(data: TaskData) -> dict[str, Cue]:
    """What each cue alone would score on test, its direction or weights learned on train."""
    heard = {split: _choose(data.splits[split]) for split in ("train", "test")}
    with progress("Auditing shortcuts", sum(map(len, heard.values())), unit="utterances") as advance:
        cues = {split: _measure(utterances, advance) for split, utterances in heard.items()}  # (N, K + B)
    real = {split: np.array([u.labels["attack"] == BONA_FIDE for u in part]) for split, part in heard.items()}
    n = len(heard["test"])
    found = {}
    for place, name in enumerate(CUES):
        scores = {split: cues[split][:, place] for split in cues}
        # Where all scores are equal, ties must not decide: interpolation gives 0.5.
        turned = _rate(scores["train"], real["train"]) > 0.5
        more, less = MORE.get(name, ("more", "less"))
        rate = _rate(-scores["test"] if turned else scores["test"], real["test"])
        found[name] = Cue(rate, f"{less if turned else more} is real", n)
    for name, columns in ((SILENCE, slice(len(CUES), None)), (TOGETHER, slice(None))):
        weights = _learn(cues["train"][:, columns], real["train"])
        rate = _rate(weights(cues["test"][:, columns]), real["test"])
        found[name] = Cue(rate, "learned on train", n)
    return found


def _choose(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Of each class those whose hashes come first; of several corpora the first one's only."""
    own = [u for u in utterances if u.labels.get("corpus") == utterances[0].labels.get("corpus")]
    ranked = sorted(own, key=lambda u: derive_seed("audit", u.id))
    real = [u for u in ranked if u.labels["attack"] == BONA_FIDE]
    return real[:HEARD] + [u for u in ranked if u.labels["attack"] != BONA_FIDE][:HEARD]


def _measure(utterances: Sequence[Utterance], advance: Callable[[], None]) -> Floats:
    rows = []
    for utterance in utterances:
        waveform = read_audio(
            utterance.path, sample_rate=SAMPLE_RATE, start=utterance.start, duration=utterance.duration
        )
        rows.append([*(cue(waveform) for cue in CUES.values()), *silence_spectrum(waveform).tolist()])
        advance()
    return np.array(rows, dtype=np.float64)


def silence_spectrum(waveform: Tensor) -> Tensor:
    """Log power of the quietest frames in bands of equal width, without its mean: (S,) -> (B,)."""
    power = _spectrogram(waveform)
    loudness = power.sum(dim=1)
    quiet = power[loudness <= loudness.quantile(QUIET)].mean(dim=0)
    bands = torch.stack([part.mean() for part in quiet.tensor_split(BANDS)])
    spectrum = bands.clamp(min=1e-12).log()
    return spectrum - spectrum.mean()


def _learn(cues: Floats, real: NDArray[np.bool_]) -> Callable[[Floats], Floats]:
    """Ridge regression of the class, both classes of one weight: (N, K) -> (N,) scores, higher = more likely real."""
    centre, spread = cues.mean(axis=0), cues.std(axis=0)
    spread = np.where(spread > 1e-9, spread, np.inf)
    inputs = np.c_[(cues - centre) / spread, np.ones(len(cues))]
    share = np.where(real, 0.5 / real.sum(), 0.5 / (~real).sum())
    target = np.where(real, 1.0, -1.0)
    left = (inputs * share[:, None]).T @ inputs + 1e-2 * np.eye(inputs.shape[1])
    weights = np.linalg.solve(left, (inputs * share[:, None]).T @ target)
    return lambda given: np.asarray(np.c_[(given - centre) / spread, np.ones(len(given))] @ weights)


def _rate(scores: Floats, real: NDArray[np.bool_]) -> float:
    return equal_error_rate(scores[real], scores[~real], interpolate=True)[0]


def as_metrics(cues: Mapping[str, Cue]) -> dict[str, MetricValue]:
    """'<cue>: <what it says>' -> its rate, as results and reports have it."""
    return {f"{name}: {cue.says}": MetricValue(cue.rate, cue.n) for name, cue in cues.items()}
