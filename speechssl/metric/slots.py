"""Slot filling metrics: which slots an utterance has, and how their values are spelled, on tagged text.

Conventions
-----------
A tagged text marks each slot by a word before and one after its value: 'add B-artist nick drake E-artist to my list'
has the slot 'artist' with the value 'nick drake'. Runs of blanks are one blank. Scores are fractions.

Slots are found from left to right as S3PRL's pattern `B-(\\S+) (.+?) E-\\1` finds them, oddities included, since the
published scores depend on them:

* a tag may stick to the text before its 'B-' and after its name in 'E-', because the labels of S3PRL's decoder write no
  blank there; so a slot ends at the first later end tag that *begins* with its name, and 'B-a x E-ab' is a slot 'a';
* a slot that is never closed, or is empty, is no slot and stays text; an empty one may run on to a later end tag;
* a slot inside of another is not found, and its tags are taken out of the outer value (in hypotheses only: a reference
  has none).

Metrics
-------
* :func:`slot_type_f1`: per utterance, precision and recall of the *set* of slot names; two empty sets score 1, one
  empty set scores 0; then the mean of F1 over utterances.
* :func:`slot_value_cer` and :func:`slot_value_wer`: each reference value against the value of the same slot name with
  the lowest error rate (the first such; an empty value where the name is missing, or where that rate is 100 or more,
  which is 10 000 %), errors over reference units of all values. What the hypotheses have in excess costs nothing.
* :func:`slot_edit_f1`: values are right only as a whole. A reference value that no value of its slot name equals is
  missed, and is also a false alarm if the name was found; with `count_extra` each value under a name that the reference
  lacks is a false alarm too. F1 of the sums.

SUPERB reports the first two, as percentages. Where S3PRL fails (a value with ':' or ';', no slot at all) the definition
is kept, and an undefined score refused.

Source: S3PRL `downstream/ctc/metric.py` and `metric/slot_filling.py`. Paper: Yang et al. 2021 (SUPERB),
arXiv:2105.01051; for the slots edit F1, Lai et al. 2020, arXiv:2010.13826. Intervals are 95 % bootstrap intervals over
utterances.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from speechssl.errors import SpeechsslError
from speechssl.metric.interval import mean_interval, ratio_interval
from speechssl.metric.transcription import ErrorCounts, character_errors, word_errors
from speechssl.result import MetricValue

SLOT = re.compile(r"B-(\S+) (.+?) E-\1")
HOPELESS = 100.0  # S3PRL: no value with so high an error rate is chosen
Values = dict[str, list[str]]
CountErrors = Callable[[Sequence[str], Sequence[str]], ErrorCounts]


@dataclass(frozen=True)
class Slot:
    """A slot that was found in a tagged text."""

    name: str
    value: str


def find_slots(text: str) -> list[Slot]:
    """The slots of a tagged text, in order; tags inside of a value stay."""
    return [Slot(name, value) for name, value in SLOT.findall(re.sub(" +", " ", text))]


def remove_slots(text: str) -> str:
    """A tagged text without its slots and their values."""
    return SLOT.sub(" ", re.sub(" +", " ", text))


def remove_tags(text: str) -> str:
    """The words of a tagged text, with runs of blanks as one."""
    return re.sub(r" E-\S+", "", re.sub(r"B-\S+ ", "", re.sub(" +", " ", text)))


def slot_type_f1(references: Sequence[str], hypotheses: Sequence[str], *, seed: int = 0) -> MetricValue:
    """The mean over utterances of the F1 of the slot names.

    Args:
        references: (N,) tagged texts.
        hypotheses: (N,) tagged texts, such as a network's.
        seed: of the interval.

    Raises:
        SpeechsslError: unequal numbers of texts, or none at all.
    """
    scores = []
    for wanted, given in _pairs(references, hypotheses):
        both = len(wanted.keys() & given.keys())
        # 2 P R / (P + R) with P = both / given and R = both / wanted.
        scores.append(2 * both / (len(wanted) + len(given)) if wanted or given else 1.0)
    low, high = mean_interval(scores, seed=seed)
    return MetricValue(sum(scores) / len(scores), len(scores), "utterances", low, high)


def slot_value_cer(references: Sequence[str], hypotheses: Sequence[str], *, seed: int = 0) -> MetricValue:
    """The character error rate of the reference values; arguments as `slot_type_f1`.

    Raises:
        SpeechsslError: as `slot_type_f1`, or no reference has a slot.
    """
    return _value_errors(references, hypotheses, character_errors).rate(seed=seed)


def slot_value_wer(references: Sequence[str], hypotheses: Sequence[str], *, seed: int = 0) -> MetricValue:
    """The word error rate of the reference values; as `slot_value_cer`."""
    return _value_errors(references, hypotheses, word_errors).rate(seed=seed)


def slot_edit_f1(
    references: Sequence[str], hypotheses: Sequence[str], *, count_extra: bool, seed: int = 0
) -> MetricValue:
    """F1 of whole values.

    Args:
        references: (N,) tagged texts.
        hypotheses: (N,) tagged texts.
        count_extra: whether values under names that the reference of the utterance lacks are false alarms: S3PRL's
            `slot_edit_f1_full`; False = its `slot_edit_f1_part`.
        seed: of the interval.

    Raises:
        SpeechsslError: as `slot_type_f1`, or there is no slot to count.
    """
    tops, bottoms = [], []
    for wanted, given in _pairs(references, hypotheses):
        hits = sum(value in given.get(name, ()) for name, values in wanted.items() for value in values)
        missed = sum(map(len, wanted.values())) - hits
        false_alarms = sum(value not in given[name] for name in wanted.keys() & given.keys() for value in wanted[name])
        if count_extra:
            false_alarms += sum(len(given[name]) for name in given.keys() - wanted.keys())
        tops.append(2 * hits)
        bottoms.append(2 * hits + missed + false_alarms)
    if not sum(bottoms):
        raise SpeechsslError("There are no slots to count, so their F1 is undefined: are the texts tagged?")
    low, high = ratio_interval(tops, bottoms, seed=seed)
    return MetricValue(sum(tops) / sum(bottoms), len(tops), "utterances", low, high)


def _value_errors(references: Sequence[str], hypotheses: Sequence[str], count: CountErrors) -> ErrorCounts:
    """Errors and units of the reference values of each utterance."""
    rows: list[int] = []  # utterance of each reference value
    sizes: list[int] = []  # number of values that it is compared with
    wanted_values: list[str] = []
    given_values: list[str] = []
    for row, (wanted, given) in enumerate(_pairs(references, hypotheses)):
        for name, values in wanted.items():
            candidates = given.get(name, [""])
            for value in values:
                rows.append(row)
                sizes.append(len(candidates))
                wanted_values += [value] * len(candidates)
                given_values += candidates
    if not rows:
        raise SpeechsslError("No reference has a slot, so no error rate of values is defined: are the texts tagged?")
    counts = count(wanted_values, given_values)
    errors, units = [0] * len(references), [0] * len(references)
    start = 0
    for row, size in zip(rows, sizes, strict=True):
        length = counts.units[start]
        fewest = min(counts.errors[start : start + size])
        errors[row] += length if fewest >= HOPELESS * length else fewest  # an empty value costs its length
        units[row] += length
        start += size
    return ErrorCounts(tuple(errors), tuple(units), counts.unit)


def _pairs(references: Sequence[str], hypotheses: Sequence[str]) -> Iterator[tuple[Values, Values]]:
    """Name -> values in order, of each reference and its hypothesis."""
    if len(references) != len(hypotheses):
        raise SpeechsslError(
            f"There must be as many hypotheses as references, but there are {len(hypotheses)} and {len(references)}."
        )
    if not references:
        raise SpeechsslError("There are no references: a score of nothing is undefined.")
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        wanted: Values = {}
        given: Values = {}
        for slot in find_slots(reference):
            wanted.setdefault(slot.name, []).append(slot.value)
        for slot in find_slots(hypothesis):
            given.setdefault(slot.name, []).append(remove_tags(slot.value))
        yield wanted, given
