"""What a conversion is compared with, computed once per corpus and vocoder since no upstream has a part in it.

* Lower bound, 'unconverted': the source itself, judged against the target.
* Upper bound, 'copy synthesis': real speech through log-mel and vocoder. Its voice is a held-out utterance of the
  target, its words are the source's; no conversion through the same vocoder should do better.
* The judge's threshold: where it errs equally often on the corpus's real speech.
"""

import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from downstreams.voice_conversion.data import Pair, Plan
from downstreams.voice_conversion.judges import SAMPLE_RATE
from downstreams.voice_conversion.output import write_speech
from downstreams.voice_conversion.scoring import Judges, Verdict, judge_voice
from speechssl.audio import read_audio
from speechssl.files import replacing
from speechssl.metric.detection import equal_error_rate
from speechssl.types import Utterance
from speechssl.vocoder import Vocoder, log_mel, synthesise

logger = logging.getLogger(__name__)
TRIALS = 12  # utterances per target that the threshold is set on
Frames = Callable[[Utterance], Tensor]
"""The features of an utterance, (T, D), for a vocoder that reads them."""
CONDITIONS = ("unconverted", "copy synthesis")


@dataclass(frozen=True)
class Bounds:
    """Profiles, threshold and verdicts on real and copy-synthesised speech."""

    threshold: float
    """Similarity above which the judge takes a voice for the target's."""
    error_rate: float
    """Of the judge at that threshold, on the corpus's real speech."""
    trials: int
    """That the error rate was measured on."""
    profiles: dict[str, list[float]]
    """Target or source speaker -> (256,)."""
    verdicts: dict[str, dict[str, Verdict]]
    """Condition -> pair id -> verdict; test pairs only."""

    def voices(self) -> dict[str, Tensor]:
        """Speaker -> profile, (256,) of unit length."""
        return {name: torch.tensor(values) for name, values in self.profiles.items()}


def load_bounds(
    plan: Plan,
    judges: Judges,
    vocoder: Vocoder,
    folder: Path,
    *,
    frames: Frames | None = None,
    judged: bool = True,
) -> Bounds:
    """Reads the bounds from `folder`, or computes and keeps them there.

    Args:
        frames: of the test split's utterances, for a vocoder on features.
        judged: whether there are to be verdicts; without, `vocoder` and `frames` take no part.
    """
    path = folder / ("bounds_2.json" if judged else "voices.json")  # the first form knew less
    folder.mkdir(parents=True, exist_ok=True)
    # Runs side by side want the same bounds: one computes, the others wait.
    with FileLock(folder / ".lock"):
        if not path.exists():
            logger.info("Judging real and copy-synthesised speech, once for this corpus and vocoder")
            known = {**{name: t.profile for name, t in plan.targets.items()}, **plan.sources}
            profiles = {name: judges.speaker.profile([read(u) for u in spoken]) for name, spoken in known.items()}
            error_rate, threshold, trials = _calibrate(plan, judges, profiles)
            verdicts: dict[str, dict[str, Verdict]] = {}
            if judged:
                verdicts = _judge_bounds(plan, judges, profiles, vocoder, folder=folder, frames=frames)
            names = {k: v.tolist() for k, v in profiles.items()}
            _write(Bounds(threshold, error_rate, trials, names, verdicts), path)
    return _read(path)


def _write(bounds: Bounds, path: Path) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(dataclasses.asdict(bounds), ensure_ascii=False), encoding="utf-8")


def read(utterance: Utterance, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """(S,) samples of an utterance."""
    return read_audio(utterance.path, sample_rate=sample_rate, start=utterance.start, duration=utterance.duration)


def copy_synthesis(utterance: Utterance, vocoder: Vocoder, frames: Frames | None = None) -> Tensor:
    """Real speech through log-mel, or its own features, and vocoder, (S,) at the vocoder's rate."""
    if frames is not None:
        return synthesise(vocoder, frames(utterance))
    rate = vocoder.mel.sample_rate
    return synthesise(vocoder, log_mel(read(utterance, rate)[None], rate, vocoder.mel)[0])


def copy_path(folder: Path, utterance: Utterance) -> Path:
    """Where the copy synthesis of a target's utterance is kept."""
    return folder / f"{utterance.id.replace('/', '_')}.flac"


def resample(waveform: Tensor, sample_rate: int) -> Tensor:
    """(S,) at `sample_rate` -> (S',) at the judges' 16 kHz."""
    import soxr

    return torch.from_numpy(soxr.resample(waveform.numpy(), sample_rate, SAMPLE_RATE))


def _calibrate(plan: Plan, judges: Judges, profiles: dict[str, Tensor]) -> tuple[float, float, int]:
    """(equal error rate, threshold, trials) over real speech of all targets against all profiles."""
    same: list[float] = []
    other: list[float] = []
    for name, target in plan.targets.items():
        for utterance in (*target.held_out, *target.reference)[:TRIALS]:
            embedding = judges.speaker.embed(read(utterance))
            for rival, profile in profiles.items():
                (same if rival == name else other).append(float(embedding @ profile))
    return (*equal_error_rate(same, other), len(same) + len(other))


def _judge_bounds(
    plan: Plan,
    judges: Judges,
    profiles: dict[str, Tensor],
    vocoder: Vocoder,
    *,
    folder: Path,
    frames: Frames | None,
) -> dict[str, dict[str, Verdict]]:
    pairs = plan.pairs["test"]
    rate = vocoder.mel.sample_rate
    speech = {p.source.id: p.source for p in pairs}
    real = {k: read(u) for k, u in speech.items()}
    copied = {k: resample(copy_synthesis(u, vocoder, frames), rate) for k, u in speech.items()}
    voices = {}
    for name in {p.target for p in pairs}:
        waveform = copy_synthesis(plan.targets[name].held_out[0], vocoder, frames)
        write_speech(copy_path(folder, plan.targets[name].held_out[0]), waveform.clamp(-1.0, 1.0), sample_rate=rate)
        voices[name] = resample(waveform, rate)
    heard = [{k: judges.word.transcribe(w) for k, w in set_.items()} for set_ in (real, copied)]
    quality = {k: judges.quality.score(w) for k, w in real.items()}
    copy_quality = {k: judges.quality.score(w) for k, w in voices.items()}
    texts = {k: judges.word.normalize(str(u.labels["text"])) for k, u in speech.items()}

    def verdict_on(waveform: Tensor, pair: Pair, said: str, opinion: float) -> Verdict:
        speaker = str(pair.source.labels["speaker"])
        similarity, identified, nearness = judge_voice(waveform, pair.target, profiles, judges.speaker, source=speaker)
        return Verdict(similarity, identified, texts[pair.source.id], said, opinion, nearness)

    def unconverted(pair: Pair) -> Verdict:
        name = pair.source.id
        return verdict_on(real[name], pair, heard[0][name], quality[name])

    def copy(pair: Pair) -> Verdict:
        return verdict_on(voices[pair.target], pair, heard[1][pair.source.id], copy_quality[pair.target])

    judged = zip(CONDITIONS, (unconverted, copy), strict=True)
    return {name: {p.id: verdict(p) for p in pairs} for name, verdict in judged}


def _read(path: Path) -> Bounds:
    raw = json.loads(path.read_text(encoding="utf-8"))
    verdicts = {c: {k: Verdict(**v) for k, v in found.items()} for c, found in raw["verdicts"].items()}
    return Bounds(raw["threshold"], raw["error_rate"], raw["trials"], raw["profiles"], verdicts)
