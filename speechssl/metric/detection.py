"""Detection metrics: how well a score separates target trials from non-target trials.

Speaker verification (same speaker / different speaker) and deepfake detection (real / spoofed) are both detection.

Conventions
-----------
Scores are (N,) real numbers, higher = more target-like; a trial is accepted when its score is above the threshold.
Rates are fractions (0.05 = 5 %). `miss` is the false rejection rate, `false_alarm` the false acceptance rate.

Metrics
-------
* :func:`equal_error_rate`: the rate at which misses and false alarms are equally frequent.
* :func:`min_dcf`: the lowest normalised detection cost over all thresholds (NIST SRE).
* :func:`detection_error_tradeoff`: the points of a DET curve.

Metrics of scores that are log-likelihood ratios are in `speechssl.metric.calibration`, those of verification under
spoofing in `speechssl.metric.tandem`, intervals in `speechssl.metric.interval` and `.detection_interval`.

The equal error rate follows the official ASVspoof scripts (`compute_det_curve` and `compute_eer` of the ASVspoof 2019,
2021 and 5 evaluation packages): scores are merged by a stable sort, targets before non-targets, and the mean of the two
rates is taken where they differ least. Tied scores therefore count against the system; with `interpolate=True` ties
form one threshold and the crossing is found by linear interpolation of the ROC curve, as is common with scikit-learn.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechssl.errors import SpeechsslError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DetectionErrorTradeoff:
    """The points of a DET curve from the lowest threshold (all accepted) to the highest (all rejected)."""

    miss: Floats
    """False rejection rates, (P,), rising from 0 to 1."""
    false_alarm: Floats
    """False acceptance rates, (P,), falling from 1 to 0."""
    thresholds: Floats
    """A trial is accepted when its score is above this, (P,); the first is -inf."""


def equal_error_rate(
    target_scores: ArrayLike, nontarget_scores: ArrayLike, *, interpolate: bool = False
) -> tuple[float, float]:
    """The equal error rate and its threshold.

    Args:
        target_scores: (N,) scores of target trials.
        nontarget_scores: (M,) scores of non-target trials.
        interpolate: interpolate between the points of the ROC curve instead of the official convention.

    Returns:
        (rate, threshold), the rate as a fraction.

    Raises:
        SpeechsslError: an empty side, or scores that are not finite.

    Paper: Wang et al. 2020 (ASVspoof 2019), arXiv:1911.01601.
    """
    target, nontarget = validate(target_scores, nontarget_scores)
    if interpolate:
        return _interpolated(target, nontarget)
    scores, labels = merge_scores(target, nontarget)
    miss = np.concatenate(([0.0], np.cumsum(labels) / target.size))
    accepted = nontarget.size - np.cumsum(1.0 - labels)
    false_alarm = np.concatenate(([1.0], accepted / nontarget.size))
    at = int(np.argmin(np.abs(miss - false_alarm)))
    # The official scripts put the first threshold a little below the lowest score.
    threshold = scores[0] - 0.001 if at == 0 else scores[at - 1]
    return float((miss[at] + false_alarm[at]) / 2), float(threshold)


def min_dcf(
    target_scores: ArrayLike,
    nontarget_scores: ArrayLike,
    *,
    p_target: float,
    cost_miss: float = 1.0,
    cost_false_alarm: float = 1.0,
) -> float:
    """The lowest detection cost over all thresholds, divided by that of the better trivial system.

    Args:
        target_scores: (N,) scores of target trials.
        nontarget_scores: (M,) scores of non-target trials.
        p_target: prior probability of a target trial, within (0, 1); 0.01 and 0.05 are usual.
        cost_miss: cost of rejecting a target.
        cost_false_alarm: cost of accepting a non-target.

    Returns:
        At most 1, the cost of accepting all or rejecting all.

    Raises:
        SpeechsslError: as `equal_error_rate`, or a prior or cost out of range.

    Paper: NIST 2016 Speaker Recognition Evaluation Plan, sec. 3.1.
    """
    if not 0.0 < p_target < 1.0:
        raise SpeechsslError(f"`p_target` must lie within (0, 1), but is {p_target}.")
    if cost_miss <= 0 or cost_false_alarm <= 0:
        raise SpeechsslError(f"The costs must be positive, but are {cost_miss} and {cost_false_alarm}.")
    curve = detection_error_tradeoff(target_scores, nontarget_scores)
    miss_weight, alarm_weight = cost_miss * p_target, cost_false_alarm * (1.0 - p_target)
    cost = miss_weight * curve.miss + alarm_weight * curve.false_alarm
    return float(cost.min() / min(miss_weight, alarm_weight))


def detection_error_tradeoff(target_scores: ArrayLike, nontarget_scores: ArrayLike) -> DetectionErrorTradeoff:
    """Miss and false-alarm rates at every distinct threshold.

    Args:
        target_scores: (N,) scores of target trials.
        nontarget_scores: (M,) scores of non-target trials.

    Returns:
        P = distinct scores + 1 points.

    Raises:
        SpeechsslError: an empty side, or scores that are not finite.
    """
    target, nontarget = validate(target_scores, nontarget_scores)
    thresholds = np.unique(np.concatenate((target, nontarget)))
    missed = np.searchsorted(np.sort(target), thresholds, side="right")
    rejected = np.searchsorted(np.sort(nontarget), thresholds, side="right")
    miss = np.concatenate(([0.0], missed / target.size))
    false_alarm = np.concatenate(([1.0], 1.0 - rejected / nontarget.size))
    return DetectionErrorTradeoff(miss, false_alarm, np.concatenate(([-np.inf], thresholds)))


def merge_scores(target: Floats, nontarget: Floats) -> tuple[Floats, Floats]:
    """Sorts all scores ascending, targets first among equals, as the official scripts do.

    Returns:
        scores (N + M,) and labels (N + M,), 1.0 = target.
    """
    order = merge_order(target, nontarget)
    labels = np.concatenate((np.ones(target.size), np.zeros(nontarget.size)))
    return np.concatenate((target, nontarget))[order], labels[order]


def merge_order(target: Floats, nontarget: Floats) -> NDArray[np.intp]:
    """The stable ascending order of the scores of targets followed by non-targets, (N + M,)."""
    return np.argsort(np.concatenate((target, nontarget)), kind="stable")


def _interpolated(target: Floats, nontarget: Floats) -> tuple[float, float]:
    curve = detection_error_tradeoff(target, nontarget)
    difference = curve.miss - curve.false_alarm  # rises from -1 to 1
    above = int(np.argmax(difference >= 0))
    below = above - 1
    share = -difference[below] / (difference[above] - difference[below])
    rate = curve.miss[below] + share * (curve.miss[above] - curve.miss[below])
    return float(rate), float(curve.thresholds[above])


def validate(target_scores: ArrayLike, nontarget_scores: ArrayLike) -> tuple[Floats, Floats]:
    """Both sides as float64.

    Raises:
        SpeechsslError: an empty side, or scores that are not finite.
    """
    return validate_side(target_scores, "target_scores"), validate_side(nontarget_scores, "nontarget_scores")


def validate_side(values: ArrayLike, name: str) -> Floats:
    """One side as float64; `name` is what messages call it.

    Raises:
        SpeechsslError: no score, or one that is not finite.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or scores.size == 0:
        raise SpeechsslError(
            f"`{name}` must hold at least one score in one dimension, but has shape {scores.shape}: "
            "a detection metric needs trials of both kinds."
        )
    if not np.isfinite(scores).all():
        bad = int(np.argmin(np.isfinite(scores)))
        raise SpeechsslError(f"`{name}` must be finite, but {name}[{bad}] = {scores[bad]}: did the training diverge?")
    return scores
