"""Transcription metrics: word and character error rates, counted by jiwer.

Conventions
-----------
References and hypotheses are lists of texts in the same order, already normalised as the task wishes (nothing is
lower-cased or stripped of punctuation here). Rates are fractions, errors over reference units, and so may exceed 1.
An utterance without reference words is refused, since its rate is undefined.

Metrics
-------
* word error rate: (substitutions + deletions + insertions) / reference words.
* character error rate: the same over characters, blanks between words included.

Intervals are 95 % bootstrap intervals over utterances (or over `groups` such as speakers).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from speechssl.errors import SpeechsslError
from speechssl.metric.interval import ratio_interval
from speechssl.result import MetricValue


@dataclass(frozen=True)
class ErrorCounts:
    """Errors and reference units per utterance, in the order of the utterances."""

    errors: tuple[int, ...]
    units: tuple[int, ...]
    unit: str
    """'words' or 'characters'."""

    def rate(self, *, seed: int = 0) -> MetricValue:
        """The pooled rate with its interval."""
        low, high = ratio_interval(self.errors, self.units, seed=seed)
        return MetricValue(sum(self.errors) / sum(self.units), sum(self.units), self.unit, low, high)

    def rates_by(self, groups: Sequence[str], *, seed: int = 0) -> dict[str, MetricValue]:
        """The pooled rate of each group, such as each language; `groups` has one entry per utterance."""
        keys = np.asarray(groups)
        found: dict[str, MetricValue] = {}
        for group in sorted(set(groups)):
            rows = np.flatnonzero(keys == group)
            part = ErrorCounts(tuple(self.errors[i] for i in rows), tuple(self.units[i] for i in rows), self.unit)
            found[group] = part.rate(seed=seed)
        return found


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Word errors per utterance.

    Raises:
        SpeechsslError: unequal numbers of texts, none at all, or an empty reference.
    """
    import jiwer

    _validate(references, hypotheses)
    pairs = [jiwer.process_words(r, h) for r, h in zip(references, hypotheses, strict=True)]
    return ErrorCounts(tuple(map(_errors, pairs)), tuple(map(_units, pairs)), "words")


def character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Character errors per utterance; raises as `word_errors`."""
    import jiwer

    _validate(references, hypotheses)
    pairs = [jiwer.process_characters(r, h) for r, h in zip(references, hypotheses, strict=True)]
    return ErrorCounts(tuple(map(_errors, pairs)), tuple(map(_units, pairs)), "characters")


def transcription_metrics(references: Sequence[str], hypotheses: Sequence[str]) -> Mapping[str, MetricValue]:
    """Both rates: 'wer' and 'cer'."""
    return {
        "wer": word_errors(references, hypotheses).rate(),
        "cer": character_errors(references, hypotheses).rate(),
    }


def _errors(output: object) -> int:
    return sum(int(getattr(output, name)) for name in ("substitutions", "deletions", "insertions"))


def _units(output: object) -> int:
    return sum(int(getattr(output, name)) for name in ("hits", "substitutions", "deletions"))


def _validate(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    if len(references) != len(hypotheses):
        raise SpeechsslError(
            f"There must be as many hypotheses as references, but there are {len(hypotheses)} and {len(references)}."
        )
    if not references:
        raise SpeechsslError("There are no references: an error rate of nothing is undefined.")
    for row, text in enumerate(references):
        if not text.strip():
            raise SpeechsslError(f"references[{row}] is empty, so its rate is undefined: leave it out and count it.")
