"""How conversions are scored: verdicts of the judges, the bounds that no conversion can leave, and the numbers.

`score` is the harmonic mean of two rates in 0..1, so that neither can make up for the other:
* identification: the share of conversions whose voice the judge finds nearest to the target's, among the voices of all
  targets and of the source;
* intelligibility: 1 - character error rate, each utterance's rate cut at 1 so that no endless repetition weighs more
  than a lost sentence.
The README says why.

Where a target has said the source's words too, `parallel_metrics` compares with that recording.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import soxr
from numpy.typing import NDArray
from torch import Tensor

from downstreams.voice_conversion.judges import (
    QualityJudge,
    SpeakerJudge,
    WordJudge,
    load_quality_judge,
    load_speaker_judge,
    load_word_judge,
)
from downstreams.voice_conversion.plan import Plan, Target
from speechssl.audio import audio_info, read_audio
from speechssl.metric.conversion import MEASURES, compare_recordings
from speechssl.metric.interval import bootstrap_interval, mean_interval
from speechssl.metric.mel_cepstrum import WIDE_RANGE, find_f0_range
from speechssl.metric.transcription import character_errors, word_errors
from speechssl.result import MetricValue
from speechssl.types import Utterance

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Judges:
    """The three judges, loaded."""

    speaker: SpeakerJudge
    word: WordJudge
    quality: QualityJudge


@cache
def load_judges() -> Judges:
    """Fetches and loads the judges, once per process."""
    return Judges(load_speaker_judge(), load_word_judge(), load_quality_judge())


@dataclass(frozen=True)
class Verdict:
    """What the judges say of one utterance."""

    similarity: float
    """Cosine to the target's profile."""
    identified: bool
    """Whether no other profile, of another target or of the source, is nearer."""
    reference: str
    """What should be heard, normalised."""
    hypothesis: str
    """What the judge of words heard."""
    quality: float | None = None
    """Predicted mean opinion score, 1 to 5; None = not asked."""
    source_similarity: float | None = None
    """Cosine to the profile of the source's speaker; None = not asked."""

    @property
    def cer(self) -> float:
        """Character error rate of this utterance, as a fraction."""
        return character_errors([self.reference], [self.hypothesis]).rate().value


def judge_voice(
    waveform: Tensor, target: str, profiles: Mapping[str, Tensor], judge: SpeakerJudge, *, source: str | None = None
) -> tuple[float, bool, float | None]:
    """(similarity, identified, source_similarity) of an utterance, see `Verdict`.

    Args:
        profiles: speaker -> (256,).
        source: speaker of the source, a key of `profiles`; None = that similarity is not asked.
    """
    embedding = judge.embed(waveform)
    found = {name: float(embedding @ profile) for name, profile in profiles.items()}
    return found[target], found[target] >= max(found.values()), None if source is None else found[source]


def give_verdict(
    waveform: Tensor,
    target: str,
    profiles: Mapping[str, Tensor],
    text: str,
    judges: Judges,
    *,
    quality: bool,
    source: str | None = None,
) -> Verdict:
    """Judges one utterance.

    Args:
        waveform: (S,) at 16 kHz.
        target: speaker, a key of `profiles`.
        profiles: speaker -> (256,).
        text: what should be heard.
        quality: whether the judge of quality is asked too.
        source: speaker of the source, a key of `profiles`; None = whether the target is nearer is not asked.
    """
    similarity, identified, nearness = judge_voice(waveform, target, profiles, judges.speaker, source=source)
    return Verdict(
        similarity,
        identified,
        judges.word.normalize(text),
        judges.word.transcribe(waveform),
        judges.quality.score(waveform) if quality else None,
        nearness,
    )


def score_metrics(verdicts: Sequence[Verdict], threshold: float) -> dict[str, MetricValue]:
    """All numbers over a set of conversions; see the module's docstring for `score`."""
    identified = np.array([v.identified for v in verdicts], dtype=np.float64)
    accepted = np.array([v.similarity > threshold for v in verdicts], dtype=np.float64)
    kept = np.array([1.0 - min(v.cer, 1.0) for v in verdicts])
    references, heard = [v.reference for v in verdicts], [v.hypothesis for v in verdicts]
    metrics = {
        "score": _statistic(lambda counts: harmonic_mean(counts @ identified, counts @ kept) / len(kept), len(kept)),
        "identification": mean_value(identified),
        "acceptance": mean_value(accepted),
        "similarity": mean_value([v.similarity for v in verdicts]),
        "cer": character_errors(references, heard).rate(),
        "wer": word_errors(references, heard).rate(),
    }
    sources = [v.source_similarity for v in verdicts]
    if None not in sources:
        nearer = [v.similarity > s for v, s in zip(verdicts, sources, strict=True) if s is not None]
        metrics["nearer_target"] = mean_value(np.array(nearer, dtype=np.float64))
    qualities = [v.quality for v in verdicts if v.quality is not None]
    if qualities:
        metrics["quality"] = mean_value(qualities)
    return metrics


def parallel_metrics(plan: Plan, split: str, waveforms: Sequence[Tensor], sample_rate: int) -> dict[str, MetricValue]:
    """mcd, f0_rmse, f0_correlation and ddur of the conversions of a split whose words their targets have said.

    Compared at the lowest sampling rate among conversions and recordings. The range of F0 is the one that the corpus
    gives with a target (`f0_min`, `f0_max`), or is found on the profile.

    Args:
        waveforms: (S,) conversions in the order of the plan's pairs.
        sample_rate: of these, Hz.

    Returns:
        Nothing where no target has said any of the words; a measure that exists for no pair is left out.
    """
    pairs = [(p, w) for p, w in zip(plan.pairs[split], waveforms, strict=True) if p.id in plan.parallels]
    if not pairs:
        return {}
    rate = min(sample_rate, *(audio_info(plan.parallels[p.id].path).sample_rate for p, _ in pairs))
    ranges = {name: _f0_range(plan.targets[name], rate) for name in {p.target for p, _ in pairs}}
    found = [
        compare_recordings(
            soxr.resample(waveform.double().numpy(), sample_rate, rate),
            _samples(plan.parallels[pair.id], rate),
            rate,
            f0_range=ranges[pair.target],
        )
        for pair, waveform in pairs
    ]
    values = {name: [v for v in (getattr(f, name) for f in found) if v is not None] for name in MEASURES}
    return {name: mean_value(measured) for name, measured in values.items() if measured}


def _f0_range(target: Target, rate: int) -> tuple[float, float]:
    labels = target.profile[0].labels if target.profile else {}
    if "f0_min" in labels and "f0_max" in labels:
        return float(labels["f0_min"]), float(labels["f0_max"])
    return find_f0_range([_samples(utterance, rate) for utterance in target.profile], rate) or WIDE_RANGE


def _samples(utterance: Utterance, rate: int) -> Floats:
    waveform = read_audio(utterance.path, sample_rate=rate, start=utterance.start, duration=utterance.duration)
    return np.asarray(waveform.double().numpy())


def harmonic_mean(first: Floats, second: Floats) -> Floats:
    """2ab / (a + b), elementwise; 0 where both are 0."""
    total = first + second
    mean: Floats = np.divide(2.0 * first * second, total, out=np.zeros_like(total), where=total > 0)
    return mean


def mean_value(values: Sequence[float] | Floats, unit: str = "pairs") -> MetricValue:
    """The mean with its bootstrap interval."""
    low, high = mean_interval(values)
    return MetricValue(float(np.mean(values)), len(values), unit, low, high)


def by_target(targets: Sequence[str], verdicts: Sequence[Verdict], threshold: float) -> dict[str, MetricValue]:
    """`score` of each target speaker."""
    found = {}
    for target in sorted(set(targets)):
        own = [v for name, v in zip(targets, verdicts, strict=True) if name == target]
        found[target] = score_metrics(own, threshold)["score"]
    return found


def by_condition(conditions: Mapping[str, Sequence[Verdict]], threshold: float) -> dict[str, dict[str, MetricValue]]:
    """'<metric> by condition' -> condition -> value, for the conversions beside their bounds."""
    measured = {name: score_metrics(verdicts, threshold) for name, verdicts in conditions.items()}
    first, *others = measured.values()
    metrics = [m for m in first if all(m in values for values in others)]
    return {f"{m} by condition": {name: values[m] for name, values in measured.items()} for m in metrics}


def _statistic(statistic: Callable[[Floats], Floats], units: int) -> MetricValue:
    low, high = bootstrap_interval(statistic, units)
    return MetricValue(float(statistic(np.ones((1, units)))[0]), units, "pairs", low, high)
