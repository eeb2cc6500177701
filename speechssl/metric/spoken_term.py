"""Spoken term detection metrics: how well scores tell the documents that hold a query from those that do not.

Conventions
-----------
A *trial* is a pair of a query and a document: scores and truth are (Q, D), one row for each query; higher = more likely
that the query occurs. A trial is accepted where its score is at least the threshold. As in the MediaEval scoring,
queries that occur in no document are left out of every measure ("unseen models", see `seen_queries`), and a trial that
a system did not report counts with a default score, which is the reader's business (`spoken_term_files`).

Metrics
-------
* term weighted value, TWV = 1 - mean over queries of (P_miss + beta P_fa), with beta = C_fa (1 - P_target) / (C_miss
  P_target), P_miss = misses / documents with the query, P_fa = false alarms / documents without it. ATWV is that of the
  system's own decisions, MTWV that of the best threshold common to all queries (0 where accepting nothing is best), and
  the upper bound that of the best threshold for each query.
* normalised cross entropy, Cnxe: the information in bits that the scores, read as natural log-likelihood ratios, fail
  to bring, over that of the prior alone (1 = as good as no system). The prior is the *effective* one, in which the
  costs are absorbed: the official tool is given this one number for both families of measures.
* minimum Cnxe after the best calibration of the scores: by an affine map, or by any rising map (pool adjacent
  violators). Which of them the official tool prints as `minCnxe` could not be established, so both are given.

Sources: the MediaEval QUESST scoring script (`score-TWV-Cnxe.sh`: P_target 0.0008, C_fa 1, C_miss 100) and its README;
Anguera et al. 2014, "Query by Example Search on Speech at MediaEval 2014", CEUR Vol-1263; Rodriguez-Fuentes and
Penagarikano 2013, "MediaEval 2013 Spoken Web Search task: system performance measures", GTTS TR-2013-1; NIST 2006
Spoken Term Detection Evaluation Plan, where trials are seconds of speech rather than documents.

SUPERB's query by example searches the English queries and documents only, and is scored against the truth of the whole
set with the default score -10 (S3PRL `downstream/docs/superb.md`): there the other queries enter its MTWV with 0.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.metric.calibration import cross_entropy, fit_calibration, least_cross_entropy
from speechssl.metric.detection import Floats
from speechssl.metric.interval import Statistic, bootstrap_interval, mean_interval
from speechssl.result import MetricValue

Booleans = NDArray[np.bool_]

THRESHOLDS = 2048  # tried at once: with 500 queries 8 MB


@dataclass(frozen=True)
class OperatingPoint:
    """What a miss and a false alarm cost, and how often a query is there; the defaults are those of QUESST 2014."""

    p_target: float = 0.0008
    cost_miss: float = 100.0
    cost_false_alarm: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.p_target < 1.0:
            raise ConfigError(f"`p_target` must lie within (0, 1), but is {self.p_target}.")
        if self.cost_miss <= 0 or self.cost_false_alarm <= 0:
            raise ConfigError(f"The costs must be positive, but are {self.cost_miss} and {self.cost_false_alarm}.")

    @property
    def beta(self) -> float:
        """How much more a rate of false alarms weighs than one of misses: 12.49 for QUESST 2014."""
        return self.cost_false_alarm * (1 - self.p_target) / (self.cost_miss * self.p_target)

    @property
    def effective_prior(self) -> float:
        """The prior under equal costs that asks for the same decisions: 0.0741 for QUESST 2014."""
        return 1.0 / (1.0 + self.beta)


QUESST2014 = OperatingPoint()


def term_weighted_value(decisions: ArrayLike, truth: ArrayLike, *, point: OperatingPoint = QUESST2014) -> float:
    """The term weighted value of yes-or-no decisions (ATWV where they are the system's own).

    Args:
        decisions: (Q, D) bool, True = the query is said to occur.
        truth: (Q, D) bool, True = it does.

    Raises:
        SpeechsslError: shapes that differ, or no query that occurs anywhere.
    """
    accepted = np.asarray(decisions, dtype=bool)
    _, labels = _seen(accepted, truth)
    return float(_query_values(accepted[_occurring(truth)], labels, point.beta).mean())


def max_term_weighted_value(
    scores: ArrayLike, truth: ArrayLike, *, point: OperatingPoint = QUESST2014
) -> tuple[float, float]:
    """The highest term weighted value over all thresholds common to the queries (MTWV), and its threshold.

    Args:
        scores: (Q, D) finite.
        truth: (Q, D) bool.

    Returns:
        (value, threshold): the highest threshold among equals, and (0, inf) where accepting nothing is best.

    Raises:
        SpeechsslError: as `term_weighted_value`, or scores that are not finite.
    """
    values, labels = _seen(scores, truth)
    best, threshold = _sweep(values, labels, np.ones((1, len(values))), point.beta)
    return float(best[0]), float(threshold[0])


def upper_bound_term_weighted_value(
    scores: ArrayLike, truth: ArrayLike, *, point: OperatingPoint = QUESST2014
) -> float:
    """The term weighted value with the best threshold for each query: what score normalisation could gain at most."""
    values, labels = _seen(scores, truth)
    best, _ = _sweep(values, labels, np.eye(len(values)), point.beta)
    return float(best.mean())


def normalised_cross_entropy(scores: ArrayLike, truth: ArrayLike, *, point: OperatingPoint = QUESST2014) -> float:
    """Cnxe of scores that are natural log-likelihood ratios; 0 is perfect, 1 is no better than the prior.

    Args:
        scores: (Q, D) finite.
        truth: (Q, D) bool.
    """
    values, labels = _seen(scores, truth)
    return float(_cross_entropies(values, labels, np.ones((1, len(values))), point.effective_prior)[0])


def min_normalised_cross_entropy(
    scores: ArrayLike,
    truth: ArrayLike,
    *,
    calibration: Literal["affine", "isotonic"],
    point: OperatingPoint = QUESST2014,
) -> float:
    """Cnxe after the calibration that makes it least, at most 1: scores are never turned round.

    Args:
        scores: (Q, D) finite.
        truth: (Q, D) bool.
        calibration: 'affine' is scale * score + offset with scale >= 0, 'isotonic' any map that never falls.
    """
    if calibration not in {"affine", "isotonic"}:
        raise ConfigError(f"`calibration` must be 'affine' or 'isotonic', but is {calibration!r}.")
    values, labels = _seen(scores, truth)
    prior = point.effective_prior
    target, nontarget = values[labels], values[~labels]
    if nontarget.size == 0 or target.min() > nontarget.max():
        return 0.0
    if calibration == "isotonic":
        return min(1.0, least_cross_entropy(target, nontarget, prior=prior) / _entropy(prior))
    found = fit_calibration(target, nontarget, prior=prior)
    entropy = cross_entropy(found.apply(target), found.apply(nontarget), prior=prior)
    return min(1.0, entropy / _entropy(prior))


def standardise_scores(scores: ArrayLike) -> Floats:
    """Scores of mean 0 and deviation 1 within each query, as S3PRL makes them comparable between queries.

    Args:
        scores: (Q, D), such as negated distances.

    Returns:
        (Q, D); a query whose scores are all equal gets 0 throughout.
    """
    values = np.asarray(scores, dtype=np.float64)
    centred = values - values.mean(axis=1, keepdims=True)
    deviation: Floats = np.maximum(values.std(axis=1, keepdims=True), 1e-9)
    # The mean of equal numbers may differ from them by a rounding error, which must not be blown up to a score.
    centred[np.ptp(values, axis=1) == 0] = 0.0
    standard: Floats = centred / deviation
    return standard


def seen_queries(truth: ArrayLike) -> int:
    """How many queries occur in some document: those that the measures are about."""
    return int(_occurring(truth).sum())


def spoken_term_metrics(
    scores: ArrayLike,
    truth: ArrayLike,
    decisions: ArrayLike | None = None,
    *,
    point: OperatingPoint = QUESST2014,
    seed: int = 0,
) -> Mapping[str, MetricValue]:
    """All measures; those with an interval have the 95 % bootstrap interval over queries.

    Args:
        scores: (Q, D) finite.
        truth: (Q, D) bool.
        decisions: (Q, D) bool; None = no actual value.
        seed: of the bootstrap.

    Returns:
        'mtwv', 'upper_bound_twv', 'cnxe', 'min_cnxe_affine', 'min_cnxe_isotonic', and 'atwv' with decisions.
    """
    values, labels = _seen(scores, truth)
    queries = len(values)

    def measure(value: float, interval: tuple[float, float] | None = None) -> MetricValue:
        low, high = interval or (None, None)
        return MetricValue(value, queries, "queries", low, high)

    def resampled(statistic: Statistic) -> tuple[float, float]:
        return bootstrap_interval(statistic, queries, seed=seed)

    own, _ = _sweep(values, labels, np.eye(queries), point.beta)
    mtwv_interval = resampled(lambda counts: _sweep(values, labels, counts, point.beta)[0])
    cnxe_interval = resampled(lambda counts: _cross_entropies(values, labels, counts, point.effective_prior))
    found = {
        "mtwv": measure(max_term_weighted_value(values, labels, point=point)[0], mtwv_interval),
        "upper_bound_twv": measure(float(own.mean()), mean_interval(own, seed=seed)),
        "cnxe": measure(normalised_cross_entropy(values, labels, point=point), cnxe_interval),
        "min_cnxe_affine": measure(min_normalised_cross_entropy(values, labels, calibration="affine", point=point)),
        "min_cnxe_isotonic": measure(min_normalised_cross_entropy(values, labels, calibration="isotonic", point=point)),
    }
    if decisions is not None:
        accepted = np.asarray(decisions, dtype=bool)
        _seen(accepted, truth)
        actual = _query_values(accepted[_occurring(truth)], labels, point.beta)
        found["atwv"] = measure(float(actual.mean()), mean_interval(actual, seed=seed))
    return found


def _query_values(accepted: Booleans, labels: Booleans, beta: float) -> Floats:
    """1 - P_miss - beta P_fa of each query, (Q,)."""
    hits = (accepted & labels).sum(axis=1) / labels.sum(axis=1)
    absent = np.maximum((~labels).sum(axis=1), 1)  # where a query is everywhere there is nothing to alarm falsely
    values: Floats = hits - beta * (accepted & ~labels).sum(axis=1) / absent
    return values


def _sweep(scores: Floats, labels: Booleans, counts: Floats, beta: float) -> tuple[Floats, Floats]:
    """The best threshold for each of R ways to weigh the queries.

    The value rises only where a target comes in, so only scores of targets need to be tried. Each query's own value at
    each of them is found once; the values of all R ways are then one matrix product.

    Args:
        counts: (R, Q) weights of the queries.

    Returns:
        values (R,), at least 0, and thresholds (R,).
    """
    thresholds = np.unique(scores[labels])[::-1]
    targets = [np.sort(row[own]) for row, own in zip(scores, labels, strict=True)]
    nontargets = [np.sort(row[~own]) for row, own in zip(scores, labels, strict=True)]
    weights = counts / counts.sum(axis=1, keepdims=True)
    best, where = np.zeros(len(counts)), np.full(len(counts), np.inf)
    for first in range(0, thresholds.size, THRESHOLDS):
        tried = thresholds[first : first + THRESHOLDS]
        hits = np.stack([_share_at_least(row, tried) for row in targets])  # (Q, P)
        alarms = np.stack([_share_at_least(row, tried) for row in nontargets])  # (Q, P)
        values = weights @ (hits - beta * alarms)  # (R, P)
        at = values.argmax(axis=1)
        highest = values[np.arange(len(counts)), at]
        better = highest > best
        best[better], where[better] = highest[better], tried[at[better]]
    return best, where


def _share_at_least(ordered: Floats, thresholds: Floats) -> Floats:
    return (ordered.size - np.searchsorted(ordered, thresholds, side="left")) / max(ordered.size, 1)


def _cross_entropies(scores: Floats, labels: Booleans, counts: Floats, prior: float) -> Floats:
    """Cnxe for each of R ways to weigh the queries, (R,)."""
    shift = math.log(prior / (1 - prior))
    bits = np.logaddexp(0.0, np.where(labels, -1.0, 1.0) * (scores + shift)) / math.log(2)  # (Q, D)
    total = np.zeros(len(counts))
    for own, weight in ((labels, prior), (~labels, 1 - prior)):
        trials = counts @ own.sum(axis=1)
        # Queries that are everywhere leave no trial of the other kind, and so no information to lose on it.
        total += weight * (counts @ np.where(own, bits, 0.0).sum(axis=1)) / np.maximum(trials, 1)
    return total / _entropy(prior)


def _entropy(prior: float) -> float:
    return -prior * math.log2(prior) - (1 - prior) * math.log2(1 - prior)


def _occurring(truth: ArrayLike) -> Booleans:
    return np.asarray(np.asarray(truth, dtype=bool).any(axis=1))


def _seen(scores: ArrayLike, truth: ArrayLike) -> tuple[Floats, Booleans]:
    """Scores and truth of the queries that occur."""
    values, labels = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=bool)
    if values.ndim != 2 or values.shape != labels.shape:
        raise SpeechsslError(
            f"Scores and truth must have one shape (Q, D), but have {values.shape} and {labels.shape}."
        )
    finite = np.isfinite(values)
    if not finite.all():
        query, document = np.argwhere(~finite)[0]
        raise SpeechsslError(
            f"`scores` must be finite, but scores[{query}, {document}] = {values[query, document]}: "
            "give trials without a score the default one."
        )
    occurring = _occurring(labels)
    if not occurring.any():
        raise SpeechsslError("No query occurs in any document, so that nothing can be missed: check the ground truth.")
    return values[occurring], labels[occurring]
