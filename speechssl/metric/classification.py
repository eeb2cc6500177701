"""Classification metrics: how often the class, or the class of each field, that was predicted is the right one.

Conventions
-----------
References and hypotheses are classes (words or integers, not mixed) in the same order, one per utterance. Scores are
fractions. A class that occurs only among the hypotheses counts for the macro F1 (it is never right) and not for the
average recall (nothing of it could be recalled).

Metrics
-------
* :func:`accuracy`: the share of right utterances; SUPERB's measure of keyword spotting, speaker identification and
  emotion recognition.
* :func:`all_fields_accuracy`: the share of utterances with every field right; SUPERB's measure of intent classification
  (action, object and location), S3PRL `downstream/fluent_commands/expert.py`.
* :func:`unweighted_average_recall`: the mean over the classes of their recall, also called balanced accuracy; the
  measure of the ComParE challenges, since accuracy rewards the guessing of a frequent class.
* :func:`macro_f1`: the mean over the classes of their F1.
* :func:`confusion_counts`: how often each class was taken for each.

Definitions as in scikit-learn: `balanced_accuracy_score`, `f1_score(average="macro", zero_division=0)`.
Paper: Yang et al. 2021 (SUPERB), arXiv:2105.01051; Schuller et al. 2009, "The INTERSPEECH 2009 Emotion
Challenge".

Intervals are 95 % bootstrap intervals over utterances (or over `groups` such as speakers).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from speechssl.errors import SpeechsslError
from speechssl.metric.detection import Floats
from speechssl.metric.interval import bootstrap_interval, mean_interval
from speechssl.result import MetricValue

Classes = Sequence[str] | Sequence[int]
"""One class, or one group, per utterance."""
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class ConfusionCounts:
    """How often each class was taken for each, K classes."""

    classes: tuple[str, ...] | tuple[int, ...]
    """All that occur in the references or the hypotheses, sorted."""
    counts: NDArray[np.int64]
    """(K, K): row = class of the reference, column = class of the hypothesis."""


def confusion_counts(references: Classes, hypotheses: Classes) -> ConfusionCounts:
    """Counts each pair of classes.

    Raises:
        SpeechsslError: unequal numbers of classes, none at all, or words mixed with integers.
    """
    classes, wanted, given = _encode(references, hypotheses)
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (wanted, given), 1)
    return ConfusionCounts(classes, counts)


def accuracy(references: Classes, hypotheses: Classes, *, groups: Classes | None = None, seed: int = 0) -> MetricValue:
    """The share of utterances whose class is right.

    Args:
        references: (N,) classes.
        hypotheses: (N,) classes.
        groups: (N,) what is resampled for the interval, such as speakers; None = utterances.
        seed: of the interval.

    Raises:
        SpeechsslError: as `confusion_counts`, or another number of groups than of utterances.
    """
    _, wanted, given = _encode(references, hypotheses)
    return _share(wanted == given, groups, seed)


def recalls_by_class(
    references: Classes, hypotheses: Classes, *, groups: Classes | None = None, seed: int = 0
) -> dict[str, MetricValue]:
    """The recall of each class of the references, with the number of its utterances; as `accuracy`."""
    classes, wanted, given = _encode(references, hypotheses)
    right, units = wanted == given, _units(groups, wanted.size)
    return {str(classes[k]): _share(right[wanted == k], units[wanted == k].tolist(), seed) for k in np.unique(wanted)}


def unweighted_average_recall(
    references: Classes, hypotheses: Classes, *, groups: Classes | None = None, seed: int = 0
) -> MetricValue:
    """The mean recall of the classes that occur in the references; arguments and errors as `accuracy`.

    Replicates of the interval take the mean over the classes that were drawn.
    """
    classes, wanted, given = _encode(references, hypotheses)
    units = _units(groups, wanted.size)
    total = _tally(units, wanted, len(classes))
    return _mean_over_classes(_tally(units, wanted, len(classes), keep=wanted == given), total, wanted.size, seed)


def macro_f1(references: Classes, hypotheses: Classes, *, groups: Classes | None = None, seed: int = 0) -> MetricValue:
    """The mean F1 of the classes that occur in the references or the hypotheses; arguments and errors as `accuracy`.

    The F1 of a class is 2 hits / (its references + its hypotheses). Replicates of the interval take the mean over the
    classes that were drawn. F1 is concave, so with few utterances per class (about 7, 1000 classes) replicates lie low,
    and the interval may end below the value.
    """
    classes, wanted, given = _encode(references, hypotheses)
    units = _units(groups, wanted.size)
    total = _tally(units, wanted, len(classes)) + _tally(units, given, len(classes))
    hits = _tally(units, wanted, len(classes), keep=wanted == given)
    return _mean_over_classes(2.0 * hits, total, wanted.size, seed)


def all_fields_accuracy(
    references: Sequence[Mapping[str, str]],
    hypotheses: Sequence[Mapping[str, str]],
    *,
    groups: Classes | None = None,
    seed: int = 0,
) -> MetricValue:
    """The share of utterances in which every field is right.

    Args:
        references: (N,) field -> class, such as {'action': 'increase', 'object': 'heat', 'location': 'kitchen'}.
        hypotheses: (N,) the same fields.
        groups: as in `accuracy`.
        seed: of the interval.

    Raises:
        SpeechsslError: unequal numbers, none at all, or fields that differ between utterances.
    """
    fields = _fields(references, hypotheses)
    right = np.ones(len(references), dtype=np.bool_)
    for field in fields:
        right &= _right_field(references, hypotheses, field)
    return _share(right, groups, seed)


def accuracy_by_field(
    references: Sequence[Mapping[str, str]],
    hypotheses: Sequence[Mapping[str, str]],
    *,
    groups: Classes | None = None,
    seed: int = 0,
) -> dict[str, MetricValue]:
    """The share of utterances in which a field is right, for each field; as `all_fields_accuracy`."""
    fields = _fields(references, hypotheses)
    return {f: _share(_right_field(references, hypotheses, f), groups, seed) for f in fields}


def _right_field(
    references: Sequence[Mapping[str, str]], hypotheses: Sequence[Mapping[str, str]], field: str
) -> NDArray[np.bool_]:
    return np.array([r[field] == h[field] for r, h in zip(references, hypotheses, strict=True)], dtype=np.bool_)


def _share(right: NDArray[np.bool_], groups: Classes | None, seed: int) -> MetricValue:
    units = _units(groups, right.size)
    low, high = mean_interval(right, groups=units, seed=seed)
    return MetricValue(float(right.mean()), int(right.size), "utterances", low, high)


def _tally(units: Indices, classes: Indices, size: int, *, keep: NDArray[np.bool_] | None = None) -> sparse.csr_array:
    """How often each unit has each class, (U, K); sparse, since an utterance has one class of a thousand."""
    weights = np.ones(units.size) if keep is None else keep.astype(np.float64)
    return sparse.csr_array((weights, (units, classes)), shape=(int(units.max()) + 1, size))


def _mean_over_classes(hits: sparse.csr_array, total: sparse.csr_array, size: int, seed: int) -> MetricValue:
    """The mean of hits / total over the classes with any, from tallies of the units, (U, K)."""

    def statistic(counts: Floats) -> Floats:
        top, bottom = (hits.T @ counts.T).T, (total.T @ counts.T).T  # (R, K)
        present = bottom > 0
        ratio = np.divide(top, bottom, out=np.zeros_like(top), where=present)
        mean: Floats = ratio.sum(axis=1) / present.sum(axis=1)
        return mean

    units = int(total.shape[0])
    low, high = bootstrap_interval(statistic, units, seed=seed)
    return MetricValue(float(statistic(np.ones((1, units)))[0]), size, "utterances", low, high)


def _encode(references: Classes, hypotheses: Classes) -> tuple[tuple[str, ...] | tuple[int, ...], Indices, Indices]:
    """All classes that occur, sorted, and which of them each reference (N,) and each hypothesis (N,) is."""
    _check_numbers(references, hypotheses)
    found: set[Any] = {*references, *hypotheses}
    if not (all(isinstance(c, str) for c in found) or all(isinstance(c, int | np.integer) for c in found)):
        kinds = ", ".join(sorted({type(c).__name__ for c in found}))
        raise SpeechsslError(f"Classes must be all words or all integers, but are {kinds}: convert one side.")
    classes = tuple(sorted(found))
    index = {c: k for k, c in enumerate(classes)}
    wanted = np.array([index[c] for c in references], dtype=np.intp)
    return classes, wanted, np.array([index[c] for c in hypotheses], dtype=np.intp)


def _fields(references: Sequence[Mapping[str, str]], hypotheses: Sequence[Mapping[str, str]]) -> list[str]:
    _check_numbers(references, hypotheses)
    fields = list(references[0])
    if not fields:
        raise SpeechsslError("references[0] has no field, so nothing of it can be right or wrong.")
    for name, rows in (("references", references), ("hypotheses", hypotheses)):
        for row, given in enumerate(rows):
            if set(given) != set(fields):
                raise SpeechsslError(
                    f"{name}[{row}] must have the fields {', '.join(fields)}, but has {', '.join(given) or 'none'}."
                )
    return fields


def _units(groups: Classes | None, size: int) -> Indices:
    """Numbers what is resampled, (N,)."""
    if groups is None:
        return np.arange(size)
    if len(groups) != size:
        raise SpeechsslError(f"There must be one group per utterance, but there are {len(groups)} for {size}.")
    return np.unique(np.asarray(groups), return_inverse=True)[1].reshape(size)


def _check_numbers(references: Sequence[object], hypotheses: Sequence[object]) -> None:
    if len(references) != len(hypotheses):
        raise SpeechsslError(
            f"There must be as many hypotheses as references, but there are {len(hypotheses)} and {len(references)}."
        )
    if len(references) == 0:
        raise SpeechsslError("There are no references: a score of nothing is undefined.")
