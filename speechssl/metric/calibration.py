"""Calibration: maps of scores to natural log-likelihood ratios, fitted to trials whose truth is known.

Conventions
-----------
As in `speechssl.metric.detection`, scores are (N,), higher = more target-like. A fit weighs all targets together by the
prior, and all non-targets by the rest, whatever their numbers. Scores are never turned round: where those of targets
are the lower ones, nothing is known, and every ratio is 0.

Sources: Brummer and du Preez 2006, "Application-independent evaluation of speaker detection", Computer Speech and
Language 20, sec. 3 to 6 (the prior-weighted logistic regression, and pool adjacent violators for the least cost);
Brummer et al. 2007 (FoCal).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression, minimize

from speechssl.errors import SpeechsslError
from speechssl.metric.detection import Floats, validate


@dataclass(frozen=True)
class Calibration:
    """The map scale * score + offset."""

    scale: float
    offset: float

    def apply(self, scores: ArrayLike) -> Floats:
        """Natural log-likelihood ratios, of any shape."""
        ratios: Floats = self.scale * np.asarray(scores, dtype=np.float64) + self.offset
        return ratios


def fit_calibration(target_scores: ArrayLike, nontarget_scores: ArrayLike, *, prior: float = 0.5) -> Calibration:
    """The affine map of least cross entropy: a logistic regression whose sides weigh `prior` and 1 - `prior`.

    Where the scores of the two sides do not overlap there is no least one; the map is then as steep as double precision
    can tell.

    Args:
        target_scores: (N,) scores of target trials.
        nontarget_scores: (M,) scores of non-target trials.
        prior: probability of a target at which the fit is to be best, within (0, 1).

    Raises:
        SpeechsslError: an empty side, scores that are not finite, or a prior out of range.
    """
    target, nontarget = validate(target_scores, nontarget_scores)
    if not 0.0 < prior < 1.0:
        raise SpeechsslError(f"`prior` must lie within (0, 1), but is {prior}.")
    scores = np.concatenate((target, nontarget))
    signs = np.concatenate((np.ones(target.size), -np.ones(nontarget.size)))
    weights = np.where(signs > 0, prior / target.size, (1 - prior) / nontarget.size)
    centre, spread = scores.mean(), max(scores.std(), 1e-300)
    scores = (scores - centre) / spread
    shift = math.log(prior / (1 - prior))

    def loss(x: Floats) -> tuple[float, Floats]:
        margin = signs * (x[0] * scores + x[1])
        slope = -weights * signs / (1.0 + np.exp(np.minimum(margin, 700.0)))
        return float(weights @ np.logaddexp(0.0, -margin)), np.array([slope @ scores, slope.sum()])

    def curvature(x: Floats) -> Floats:
        p = 1.0 / (1.0 + np.exp(-np.clip(x[0] * scores + x[1], -700.0, 700.0)))
        w = weights * p * (1 - p)
        return np.array([[w @ scores**2, w @ scores], [w @ scores, w.sum()]])

    begin = np.array([0.0, shift])
    found = minimize(loss, begin, jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-10}).x
    if found[0] <= 0:
        return Calibration(0.0, 0.0)
    return Calibration(float(found[0] / spread), float(found[1] - found[0] * centre / spread - shift))


def cross_entropy(target_ratios: ArrayLike, nontarget_ratios: ArrayLike, *, prior: float) -> float:
    """What log-likelihood ratios leave unknown of which side a trial is on, in bits; the prior alone: its entropy."""
    target, nontarget = validate(target_ratios, nontarget_ratios)
    shift = math.log(prior / (1 - prior))
    missed = np.logaddexp(0.0, -(target + shift)).mean()
    alarmed = np.logaddexp(0.0, nontarget + shift).mean()
    return float(prior * missed + (1 - prior) * alarmed) / math.log(2)


def least_cross_entropy(target_scores: ArrayLike, nontarget_scores: ArrayLike, *, prior: float) -> float:
    """The cross entropy in bits after the best of all maps that never fall: pool adjacent violators."""
    target, nontarget = validate(target_scores, nontarget_scores)
    levels, place = np.unique(np.concatenate((target, nontarget)), return_inverse=True)
    hits = np.bincount(place[: target.size], minlength=levels.size) * (prior / target.size)
    alarms = np.bincount(place[target.size :], minlength=levels.size) * ((1 - prior) / nontarget.size)
    posterior = isotonic_regression(hits / (hits + alarms), weights=hits + alarms).x
    with np.errstate(divide="ignore", invalid="ignore"):
        lost = np.where(hits > 0, hits * np.log2(posterior), 0.0)
        lost += np.where(alarms > 0, alarms * np.log2(1 - posterior), 0.0)
    return max(0.0, -float(lost.sum()))


def llr_cost(target_ratios: ArrayLike, nontarget_ratios: ArrayLike) -> float:
    """Cllr: the cross entropy at equal priors, in bits; 1 = as good as knowing nothing, and worse is possible.

    Args:
        target_ratios: (N,) natural log-likelihood ratios of target trials.
        nontarget_ratios: (M,) those of non-target trials.
    """
    return cross_entropy(target_ratios, nontarget_ratios, prior=0.5)


def min_llr_cost(target_scores: ArrayLike, nontarget_scores: ArrayLike) -> float:
    """minCllr: Cllr after the best calibration that keeps the order of the scores, at most 1."""
    return min(1.0, least_cross_entropy(target_scores, nontarget_scores, prior=0.5))


def actual_dcf(
    target_ratios: ArrayLike,
    nontarget_ratios: ArrayLike,
    *,
    p_target: float,
    cost_miss: float = 1.0,
    cost_false_alarm: float = 1.0,
) -> float:
    """The detection cost of decisions at the threshold that log-likelihood ratios ask for, normalised as `min_dcf`.

    A trial is accepted where its ratio is above log(C_fa (1 - P_target) / (C_miss P_target)).

    Paper: NIST 2016 Speaker Recognition Evaluation Plan, sec. 3.1.
    """
    target, nontarget = validate(target_ratios, nontarget_ratios)
    if not 0.0 < p_target < 1.0 or cost_miss <= 0 or cost_false_alarm <= 0:
        raise SpeechsslError(
            f"`p_target` must lie within (0, 1) and the costs be positive, but they are {p_target}, {cost_miss} and "
            f"{cost_false_alarm}."
        )
    miss_weight, alarm_weight = cost_miss * p_target, cost_false_alarm * (1.0 - p_target)
    threshold = math.log(alarm_weight / miss_weight)
    cost = miss_weight * np.mean(target <= threshold) + alarm_weight * np.mean(nontarget > threshold)
    return float(cost / min(miss_weight, alarm_weight))
