"""Calibration: maps of scores to natural log-likelihood ratios, fitted to trials whose truth is known.

Conventions
-----------
As in `speechssl.metric.detection`, scores are (N,), higher = more target-like. A fit weighs all targets together by the
prior, and all non-targets by the rest, whatever their numbers. Scores are never turned round: where those of targets
are the lower ones, nothing is known, and every ratio is 0. (A fusion of several systems has signs of its own.)

Sources: Brummer and du Preez 2006, "Application-independent evaluation of speaker detection", Computer Speech and
Language 20, sec. 3 to 6 (the prior-weighted logistic regression, and pool adjacent violators for the least cost);
Brummer et al. 2007, "Fusion of heterogeneous speaker recognition systems in the STBU submission for the NIST speaker
recognition evaluation 2006" (linear fusion; FoCal).
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


@dataclass(frozen=True, eq=False)
class IsotonicCalibration:
    """A map that never falls: linear between scores whose ratios are known, constant beyond them."""

    scores: Floats
    """(P,), rising."""
    ratios: Floats
    """(P,), never falling, finite."""

    def apply(self, scores: ArrayLike) -> Floats:
        """Natural log-likelihood ratios, of any shape; scores that the fit can't tell apart get equal ones."""
        ratios: Floats = np.interp(np.asarray(scores, dtype=np.float64), self.scores, self.ratios)
        return ratios


@dataclass(frozen=True)
class Fusion:
    """The map of the scores of K systems to one: weights @ scores + offset."""

    weights: tuple[float, ...]
    offset: float

    def apply(self, scores: ArrayLike) -> Floats:
        """(N, K) scores -> (N,) natural log-likelihood ratios."""
        ratios: Floats = np.asarray(scores, dtype=np.float64) @ np.asarray(self.weights) + self.offset
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
    fusion = _regress(target[:, None], nontarget[:, None], prior)
    return Calibration(fusion.weights[0], fusion.offset) if fusion.weights[0] > 0 else Calibration(0.0, 0.0)


def fit_fusion(target_scores: ArrayLike, nontarget_scores: ArrayLike, *, prior: float = 0.5) -> Fusion:
    """The linear map of K systems' scores of least cross entropy: `fit_calibration` with a weight for each system.

    Weights may be negative: a system that errs as another does is taken away from it.

    Args:
        target_scores: (N, K) scores of target trials.
        nontarget_scores: (M, K) scores of non-target trials.
        prior: as `fit_calibration`.

    Raises:
        SpeechsslError: as `fit_calibration`, or sides of unequal K.
    """
    target, nontarget = np.atleast_2d(target_scores), np.atleast_2d(nontarget_scores)
    if target.ndim != 2 or target.shape[1:] != nontarget.shape[1:]:
        raise SpeechsslError(
            f"`target_scores` and `nontarget_scores` must be (N, K) and (M, K), but are {target.shape} and "
            f"{nontarget.shape}."
        )
    pairs = [validate(a, b) for a, b in zip(target.T, nontarget.T, strict=True)]
    return _regress(np.stack([a for a, _ in pairs], axis=1), np.stack([b for _, b in pairs], axis=1), prior)


def _regress(target: Floats, nontarget: Floats, prior: float) -> Fusion:
    """Logistic regression of (N, K) against (M, K) scores; the offset is freed of the prior's log odds."""
    if not 0.0 < prior < 1.0:
        raise SpeechsslError(f"`prior` must lie within (0, 1), but is {prior}.")
    scores = np.concatenate((target, nontarget))  # (N + M, K)
    signs = np.concatenate((np.ones(len(target)), -np.ones(len(nontarget))))
    weights = np.where(signs > 0, prior / len(target), (1 - prior) / len(nontarget))
    centre, spread = scores.mean(axis=0), np.maximum(scores.std(axis=0), 1e-300)
    inputs = np.column_stack(((scores - centre) / spread, np.ones(len(scores))))  # (N + M, K + 1)
    shift = math.log(prior / (1 - prior))

    def loss(x: Floats) -> tuple[float, Floats]:
        margin = signs * (inputs @ x)
        slope = -weights * signs / (1.0 + np.exp(np.minimum(margin, 700.0)))
        return float(weights @ np.logaddexp(0.0, -margin)), slope @ inputs

    def curvature(x: Floats) -> Floats:
        p = 1.0 / (1.0 + np.exp(-np.clip(inputs @ x, -700.0, 700.0)))
        found: Floats = inputs.T @ (inputs * (weights * p * (1 - p))[:, None])
        return found

    begin = np.append(np.zeros(scores.shape[1]), shift)
    found = minimize(loss, begin, jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-10}).x
    slopes = found[:-1] / spread
    return Fusion(tuple(slopes.tolist()), float(found[-1] - slopes @ centre - shift))


def fit_isotonic(target_scores: ArrayLike, nontarget_scores: ArrayLike) -> IsotonicCalibration:
    """The map of least cross entropy among all that never fall: pool adjacent violators.

    One more trial of each side is put below all scores and one above them, so that no ratio is infinite: a score that
    nothing contradicts says as much as the number of trials behind it can.

    Args:
        target_scores: (N,) scores of target trials.
        nontarget_scores: (M,) scores of non-target trials.

    Raises:
        SpeechsslError: an empty side, or scores that are not finite.
    """
    target, nontarget = validate(target_scores, nontarget_scores)
    levels, hits, alarms = _count_levels(target, nontarget)
    hits, alarms = (np.concatenate(([1.0], side, [1.0])) for side in (hits, alarms))
    posterior = isotonic_regression(hits / (hits + alarms), weights=hits + alarms).x[1:-1]
    ratios = np.log(posterior) - np.log1p(-posterior) - math.log((target.size + 2) / (nontarget.size + 2))
    flat = np.flatnonzero((ratios[1:-1] == ratios[:-2]) & (ratios[1:-1] == ratios[2:])) + 1
    return IsotonicCalibration(np.delete(levels, flat), np.delete(ratios, flat))


def _count_levels(target: Floats, nontarget: Floats) -> tuple[Floats, Floats, Floats]:
    """Distinct scores, rising, and how many targets and non-targets have each, all (P,)."""
    levels, place = np.unique(np.concatenate((target, nontarget)), return_inverse=True)
    hits = np.bincount(place[: target.size], minlength=levels.size)
    alarms = np.bincount(place[target.size :], minlength=levels.size)
    return levels, hits.astype(np.float64), alarms.astype(np.float64)


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
    _, hits, alarms = _count_levels(target, nontarget)
    hits, alarms = hits * (prior / target.size), alarms * ((1 - prior) / nontarget.size)
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


def is_calibrated(cost: float, least: float) -> bool:
    """Whether Cllr is near minCllr, so that numbers which take scores for log-likelihood ratios mean something.

    Near is within 0.05 bit or a quarter of minCllr: a choice of ours, above what a few hundred trials leave to chance.
    """
    return cost - least <= max(0.05, 0.25 * least)


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
