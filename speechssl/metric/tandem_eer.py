"""t-EER: the equal error rate of a countermeasure and a verifier in tandem, without costs or priors.

A trial is accepted where both accept it, and their scores are taken as independent within each kind of trials. Of all
pairs of thresholds there is one where the tandem rejects as many targets as it accepts of the non-targets and of the
spoofs: the rate there, the concurrent t-EER, depends on no prior.

Paper: Kinnunen et al. 2023, "t-EER: Parameter-free tandem evaluation of countermeasures and biometric comparators",
doi:10.1109/TPAMI.2023.3313648. As in the package of ASVspoof 5 the rate is that of the spoofs at the pair of thresholds
nearest to the concurrent point; that package walks along the thresholds at which misses equal false alarms for each of
three priors, this module along those of non-targets alone.
"""

import numpy as np
from numpy.typing import ArrayLike

from speechssl.metric.detection import detection_error_tradeoff, validate, validate_side


def concurrent_tandem_eer(
    target_scores: ArrayLike,
    nontarget_scores: ArrayLike,
    spoof_scores: ArrayLike,
    bona_fide_scores: ArrayLike,
    spoof_countermeasure_scores: ArrayLike,
) -> float:
    """The concurrent t-EER, a fraction.

    Args:
        target_scores: (N,) of the verifier.
        nontarget_scores: (M,) of the verifier.
        spoof_scores: (S,) of the verifier.
        bona_fide_scores: (B,) of the countermeasure.
        spoof_countermeasure_scores: (A,) of the countermeasure.

    Raises:
        SpeechsslError: an empty side, or scores that are not finite.
    """
    target, nontarget = validate(target_scores, nontarget_scores)
    spoof = validate_side(spoof_scores, "spoof_scores")
    thresholds = np.append(-np.inf, np.unique(np.concatenate((target, nontarget, spoof))))
    miss, correct, caught = (
        np.searchsorted(np.sort(side), thresholds, side="right") / side.size for side in (target, nontarget, spoof)
    )
    allowed = (miss < 1 - correct) & (caught < 1)  # where all are accepted at least
    miss, alarm, passed = miss[allowed], 1 - correct[allowed], 1 - caught[allowed]
    curve = detection_error_tradeoff(bona_fide_scores, spoof_countermeasure_scores)
    # Misses of the tandem, m + (1 - m) miss, equal its false alarms of non-targets, (1 - m) alarm, where m is this.
    balanced = (alarm - miss) / (1 - miss + alarm)
    at = np.searchsorted(curve.miss, balanced).clip(1, curve.miss.size - 1)
    at -= balanced - curve.miss[at - 1] < curve.miss[at] - balanced
    refused, fooled = curve.miss[at], curve.false_alarm[at]
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(refused < 1, np.abs(alarm / passed - fooled / (1 - refused)), np.inf)
    best = int(np.argmin(distance))
    return float(passed[best] * fooled[best])
