"""Costs of spoofing in speaker verification: a countermeasure before a verifier (t-DCF), or both in one (a-DCF).

Conventions
-----------
ASV is automatic speaker verification, a countermeasure tells bona fide from spoofed speech. Scores are (N,), higher =
more likely accepted. `miss` is the share of targets rejected, `false_alarm` that of non-targets (other speakers, bona
fide) accepted, `spoof_false_alarm` that of spoofs accepted; all fractions.

Costs are normalised by those of the better trivial countermeasure, which lets everything or nothing pass, so that more
than 1 is useless. Thresholds that fall between equal scores, which the official scripts try too, never cost least.

Metrics
-------
* :func:`min_tandem_dcf`: t-DCF, least over the thresholds of the countermeasure, the ASV's being fixed.
* :func:`min_agnostic_dcf`: a-DCF of one score for all, least over its threshold.

References: Kinnunen et al. 2018, arXiv:1804.09618, and the plan of ASVspoof 2019 (form "2019"); Kinnunen et al. 2020,
arXiv:2007.05979, eq. 10 and 11 (form "2021"); Shim et al. 2024, arXiv:2403.01355. Numbers, thresholds and normalisers
are those of the evaluation packages of ASVspoof 2021 and 5 and of the package a_dcf.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from speechssl.errors import SpeechsslError
from speechssl.metric.detection import detection_error_tradeoff, equal_error_rate, validate, validate_side

Form = Literal["2019", "2021"]


@dataclass(frozen=True)
class AsvErrorRates:
    """How the ASV errs at its threshold."""

    miss: float
    false_alarm: float
    spoof_false_alarm: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0.0 <= value <= 1.0:
                raise SpeechsslError(f"`{name}` of the ASV must be a fraction from 0 to 1, but is {value}.")


ASVSPOOF5_RATES = AsvErrorRates(
    miss=0.01880141010575793, false_alarm=0.01881016557566423, spoof_false_alarm=0.4607082907604729
)
"""Of the organisers' ASV in track 2 of ASVspoof 5, as its evaluation package has them."""


@dataclass(frozen=True)
class TandemCosts:
    """Priors and costs of t-DCF; the defaults are those of ASVspoof 2019, 2021 and 5."""

    p_target: float = 0.95 * 0.99
    p_nontarget: float = 0.95 * 0.01
    p_spoof: float = 0.05
    cost_miss: float = 1.0
    """Of a target that the ASV rejects, and in the form of 2021 of one that either rejects."""
    cost_false_alarm: float = 10.0
    cost_spoof: float = 10.0
    cost_miss_countermeasure: float = 1.0
    """Of a target that the countermeasure rejects; of the form of 2019 alone."""

    def __post_init__(self) -> None:
        _check_costs(self, (self.p_target, self.p_nontarget, self.p_spoof))


@dataclass(frozen=True)
class AgnosticCosts:
    """Priors and costs of a-DCF; the defaults are those of the package a_dcf, a-DCF1 in the paper."""

    p_target: float = 0.9
    p_nontarget: float = 0.05
    p_spoof: float = 0.05
    cost_miss: float = 1.0
    cost_false_alarm: float = 10.0
    cost_spoof: float = 20.0

    def __post_init__(self) -> None:
        _check_costs(self, (self.p_target, self.p_nontarget, self.p_spoof))


def _check_costs(costs: "TandemCosts | AgnosticCosts", priors: tuple[float, float, float]) -> None:
    if min(priors) < 0 or abs(sum(priors) - 1) > 1e-9:
        raise SpeechsslError(f"The priors must not be negative and sum to 1, but are {priors}.")
    for name, value in vars(costs).items():
        if name.startswith("cost_") and not (value > 0 and math.isfinite(value)):
            raise SpeechsslError(f"`{name}` must be positive, but is {value}.")


def asv_error_rates(
    target_scores: ArrayLike, nontarget_scores: ArrayLike, spoof_scores: ArrayLike, *, threshold: float | None = None
) -> AsvErrorRates:
    """The errors of an ASV whose scores are given.

    Args:
        target_scores: (N,).
        nontarget_scores: (M,).
        spoof_scores: (S,) of spoofed speech against the speakers that it imitates.
        threshold: scores of at least this are accepted, as the official scripts have it; None = that of equal errors
            between targets and non-targets.

    Raises:
        SpeechsslError: an empty side, or scores that are not finite.
    """
    target, nontarget = validate(target_scores, nontarget_scores)
    spoof = validate_side(spoof_scores, "spoof_scores")
    if threshold is None:
        threshold = equal_error_rate(target, nontarget)[1]
    return AsvErrorRates(
        float(np.mean(target < threshold)), float(np.mean(nontarget >= threshold)), float(np.mean(spoof >= threshold))
    )


def tandem_weights(
    rates: AsvErrorRates, *, costs: TandemCosts | None = None, form: Form = "2021"
) -> tuple[float, float, float]:
    """C0, C1 and C2: what the tandem costs is C0 + C1 miss + C2 false_alarm of the countermeasure.

    The form of 2019 leaves out C0, what the ASV costs by itself behind a countermeasure without errors.

    Raises:
        SpeechsslError: an ASV so bad, or so immune to spoofs, that a countermeasure can't be measured by it.
    """
    costs = costs or TandemCosts()
    alone = costs.p_target * costs.cost_miss * rates.miss
    alone += costs.p_nontarget * costs.cost_false_alarm * rates.false_alarm
    cost_miss = costs.cost_miss if form == "2021" else costs.cost_miss_countermeasure
    missed = costs.p_target * cost_miss - alone
    spoofed = costs.p_spoof * costs.cost_spoof * rates.spoof_false_alarm
    if missed <= 0 or spoofed <= 0:
        raise SpeechsslError(
            f"The weights of t-DCF must be positive, but are C1 = {missed:.4g} and C2 = {spoofed:.4g} with {rates}: "
            "give other ASV scores."
        )
    return (alone if form == "2021" else 0.0), missed, spoofed


def min_tandem_dcf(
    bona_fide_scores: ArrayLike,
    spoof_scores: ArrayLike,
    rates: AsvErrorRates,
    *,
    costs: TandemCosts | None = None,
    form: Form = "2021",
) -> float:
    """Normalised t-DCF at the threshold of the countermeasure where it is least.

    Args:
        bona_fide_scores: (N,) scores of the countermeasure.
        spoof_scores: (M,) scores of the countermeasure.
        rates: of the ASV.
        form: "2021" = C0 + C1 miss + C2 false_alarm over C0 + min(C1, C2): with an ASV that errs it is above 0.
            "2019" = the same without C0.

    Returns:
        At most 1.

    Raises:
        SpeechsslError: an empty side, scores that are not finite, or as `tandem_weights`.
    """
    alone, missed, spoofed = tandem_weights(rates, costs=costs, form=form)
    curve = detection_error_tradeoff(bona_fide_scores, spoof_scores)
    cost = alone + missed * curve.miss + spoofed * curve.false_alarm
    return float(cost.min() / (alone + min(missed, spoofed)))


def min_agnostic_dcf(
    target_scores: ArrayLike,
    nontarget_scores: ArrayLike,
    spoof_scores: ArrayLike,
    *,
    costs: AgnosticCosts | None = None,
) -> tuple[float, float]:
    """Normalised a-DCF at the threshold where it is least, for systems of any architecture that give one score.

    Args:
        target_scores: (N,).
        nontarget_scores: (M,).
        spoof_scores: (S,).

    Returns:
        (cost, threshold), the cost at most 1; a trial is accepted when its score is above the threshold.

    Raises:
        SpeechsslError: an empty side, or scores that are not finite.

    Paper: Shim et al. 2024, arXiv:2403.01355.
    """
    costs = costs or AgnosticCosts()
    target, nontarget = (np.sort(side) for side in validate(target_scores, nontarget_scores))
    spoof = np.sort(validate_side(spoof_scores, "spoof_scores"))
    thresholds = np.append(-np.inf, np.unique(np.concatenate((target, nontarget, spoof))))
    miss, correct, caught = (np.searchsorted(s, thresholds, side="right") / s.size for s in (target, nontarget, spoof))
    rejecting = costs.cost_miss * costs.p_target
    accepting = costs.cost_false_alarm * costs.p_nontarget, costs.cost_spoof * costs.p_spoof
    cost = rejecting * miss + accepting[0] * (1.0 - correct) + accepting[1] * (1.0 - caught)
    at = int(np.argmin(cost))
    return float(cost[at] / min(rejecting, sum(accepting))), float(thresholds[at])
