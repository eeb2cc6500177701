"""Nearest neighbours over sequences of units: what their order tells of a label, such as a word, a caller or a call.

Each sequence is labelled by the k others with the least edit distance, by majority; where labels are as frequent, by
the one whose neighbours are nearer. Substitutions, insertions and deletions cost 1, over the longer sequence's length.

Paper: Sarkar and Magimai-Doss 2025, "Towards leveraging sequential structure in animal vocalizations",
arXiv:2511.10190: k-nearest neighbours with Levenshtein distance over tokens of HuBERT. The division by the length and
the rule for ties are choices of ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from speechssl.errors import SpeechsslError
from speechssl.metric.classification import accuracy, unweighted_average_recall
from speechssl.result import MetricValue

ROWS = 1024
"""Sequences whose distances from all others are held at once."""
Units = Sequence[Sequence[int]]


@dataclass(frozen=True)
class TokenNeighbours:
    """How well neighbours tell the label."""

    accuracy: MetricValue
    average_recall: MetricValue
    """Mean over the labels of the share of theirs that is right."""
    predictions: tuple[str, ...]


def knn_predict(
    train: Units,
    labels: Sequence[str],
    test: Units,
    *,
    k: int,
    train_groups: Sequence[str] | None = None,
    test_groups: Sequence[str] | None = None,
) -> list[str]:
    """The labels of the nearest sequences.

    Args:
        train: units of labelled sequences; see `speechssl.analysis.units.sequences`.
        labels: one for each.
        test: units of those to be labelled.
        k: neighbours.
        train_groups, test_groups: neighbours of the own group are passed over, such as the same recording; None = none.

    Raises:
        SpeechsslError: numbers that don't fit, or a sequence with no neighbour outside its group.
    """
    if len(train) != len(labels) or not train:
        raise SpeechsslError(f"There must be a label for each sequence, but there are {len(labels)} and {len(train)}.")
    if k < 1:
        raise SpeechsslError(f"`k` must be at least 1, but is {k}.")
    names = sorted(set(labels))
    classes = np.array([names.index(label) for label in labels])
    own = None if train_groups is None else np.asarray(train_groups)
    found: list[str] = []
    for first in range(0, len(test), ROWS):
        part = test[first : first + ROWS]
        distances = np.asarray(
            cdist(part, train, scorer=Levenshtein.normalized_distance, dtype=np.float64), dtype=np.float64
        )
        if own is not None and test_groups is not None:
            theirs = np.asarray(test_groups[first : first + ROWS])
            distances[theirs[:, None] == own[None, :]] = np.inf
        found += [names[_vote(row, classes, k, len(names))] for row in distances]
    return found


def _vote(distances: NDArray[np.float64], classes: NDArray[np.int64], k: int, count: int) -> int:
    nearest = np.argsort(distances, kind="stable")[:k]
    nearest = nearest[np.isfinite(distances[nearest])]
    if nearest.size == 0:
        raise SpeechsslError("A sequence has no neighbour outside its own group: give others, or coarser groups.")
    votes = np.bincount(classes[nearest], minlength=count)
    near = np.bincount(classes[nearest], weights=distances[nearest], minlength=count) / np.maximum(votes, 1)
    return int(np.lexsort((near, -votes))[0])


def knn_evaluate(
    units: Units, labels: Sequence[str], *, k: int = 5, groups: Sequence[str] | None = None, seed: int = 0
) -> TokenNeighbours:
    """Labels each sequence by the others, and counts what is right.

    Args:
        groups: one for each sequence, whose others are no neighbours, such as its speaker; None = only itself is none.
        seed: of the intervals, which are over groups where there are any.
    """
    own = list(groups) if groups is not None else [str(number) for number in range(len(units))]
    found = knn_predict(units, labels, units, k=k, train_groups=own, test_groups=own)
    return TokenNeighbours(
        accuracy(labels, found, groups=groups, seed=seed),
        unweighted_average_recall(labels, found, groups=groups, seed=seed),
        tuple(found),
    )
