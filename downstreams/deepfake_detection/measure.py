"""What is reported of the scores: equal error rates, detection costs, calibration and the confusion of attacks.

Scores: higher = more likely bona fide, as in ASVspoof.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from downstreams.deepfake_detection.plan import BONA_FIDE
from downstreams.deepfake_detection.score_measures import COST_FALSE_ALARM, COST_MISS, P_SPOOF
from speechssl.files import replacing
from speechssl.metric.calibration import Calibration, actual_dcf, is_calibrated, llr_cost, min_llr_cost
from speechssl.metric.detection import equal_error_rate, min_dcf
from speechssl.metric.detection_interval import DetectionBootstrap
from speechssl.metric.interval import REPLICATES, equal_error_rate_interval, mean_interval, percentile_interval
from speechssl.result import MetricValue
from speechssl.types import Utterance

logger = logging.getLogger(__name__)
Scored = Sequence[tuple[Utterance, float]]
LARGE = 20_000
"""Trials from which on intervals take them as independent: drawing originals would take minutes and gigabytes."""


def real_and_spoofed(scored: Scored) -> tuple[Scored, Scored]:
    """Parts the two classes."""
    real = [s for s in scored if s[0].labels["attack"] == BONA_FIDE]
    return real, [s for s in scored if s[0].labels["attack"] != BONA_FIDE]


def eer(real: Scored, spoofed: Scored) -> MetricValue:
    """Equal error rate with an interval; what was made from one original is resampled together, up to LARGE trials."""
    scores = [score for _, score in real], [score for _, score in spoofed]
    units = _originals(real, spoofed)
    if units is None:
        low, high = DetectionBootstrap(*scores).equal_error_rate()
    else:
        low, high = equal_error_rate_interval(*scores, target_units=units[0], nontarget_units=units[1])
    return MetricValue(equal_error_rate(*scores)[0], len(real) + len(spoofed), "utterances", low, high)


def _originals(real: Scored, spoofed: Scored) -> tuple[list[str], list[str]] | None:
    """What is resampled together; None = each trial by itself."""
    if len(real) + len(spoofed) > LARGE:
        return None
    return [u.labels["original"] for u, _ in real], [u.labels["original"] for u, _ in spoofed]


def detection_cost(real: Scored, spoofed: Scored) -> MetricValue:
    """Minimum normalised detection cost.

    Paper: Wang et al. 2024, ASVspoof 5, sec. 4, arXiv:2408.08739.
    """
    value = min_dcf(
        [score for _, score in real],
        [score for _, score in spoofed],
        p_target=1.0 - P_SPOOF,
        cost_miss=COST_MISS,
        cost_false_alarm=COST_FALSE_ALARM,
    )
    return MetricValue(value, len(real) + len(spoofed))


def calibrated_costs(real: Scored, spoofed: Scored, calibration: Calibration) -> dict[str, MetricValue]:
    """What scores are worth as log-likelihood ratios: 'act_dcf', 'cllr', and 'min_cllr', which the best map leaves.

    Args:
        calibration: fitted on dev; one that is not finite is not known, and then there is nothing to measure.

    Paper: Wang et al. 2024, ASVspoof 5, sec. 4, arXiv:2408.08739.
    """
    if not (math.isfinite(calibration.scale) and math.isfinite(calibration.offset)):
        return {}
    sides = [calibration.apply([score for _, score in side]) for side in (real, spoofed)]
    units = _originals(real, spoofed) or (None, None)
    costs = {"p_target": 1.0 - P_SPOOF, "cost_miss": COST_MISS, "cost_false_alarm": COST_FALSE_ALARM}
    weights = COST_MISS * (1.0 - P_SPOOF), COST_FALSE_ALARM * P_SPOOF
    threshold = math.log(weights[1] / weights[0])
    drawn = DetectionBootstrap(*sides, thresholds=[threshold], target_units=units[0], nontarget_units=units[1])
    cost, least, number = llr_cost(*sides), min_llr_cost(*sides), len(real) + len(spoofed)
    if not is_calibrated(cost, least):
        logger.warning(
            "Calibrated on dev, the scores of test have Cllr %.3f where %.3f could be: dev is unlike test", cost, least
        )
    actual = actual_dcf(*sides, **costs)
    return {
        "act_dcf": MetricValue(actual, number, "utterances", *drawn.cost_at(threshold, weights)),
        "cllr": MetricValue(cost, number, "utterances", *drawn.llr_cost()),
        "min_cllr": MetricValue(least, number),
    }


def headline(scored: Scored, *, unseen: bool) -> tuple[Scored, Scored]:
    """Real and spoofed of what the headline is about.

    Args:
        scored: where there are several corpora, the first utterance's is meant.
        unseen: of spoofed speech, only the attacks that training never met.
    """
    first = scored[0][0].labels.get("corpus")
    real, spoofed = real_and_spoofed([s for s in scored if s[0].labels.get("corpus") == first])
    return real, [s for s in spoofed if not s[0].labels["seen"]] if unseen else spoofed


def act_dcf_by(label: str, real: Scored, spoofed: Scored, calibration: Calibration) -> dict[str, MetricValue]:
    """Detection cost of each attack at the threshold that log-likelihood ratios ask for, against all real speech."""
    if not (math.isfinite(calibration.scale) and math.isfinite(calibration.offset)):
        return {}
    costs = {"p_target": 1.0 - P_SPOOF, "cost_miss": COST_MISS, "cost_false_alarm": COST_FALSE_ALARM}
    ratios = calibration.apply([score for _, score in real])
    found = {}
    for name in _values(label, spoofed):
        fakes = calibration.apply([score for u, score in spoofed if u.labels.get(label) == name])
        found[name] = MetricValue(actual_dcf(ratios, fakes, **costs), len(ratios) + len(fakes))
    return found


def eer_by(label: str, real: Scored, spoofed: Scored) -> dict[str, MetricValue]:
    """Equal error rate of each attack or family against the real speech of the languages that it covers."""
    rates = {}
    for name in _values(label, spoofed):
        group = [s for s in spoofed if s[0].labels[label] == name]
        languages = {u.labels.get("language") for u, _ in group}
        rates[name] = eer([s for s in real if s[0].labels.get("language") in languages], group)
    return rates


def acceptance_by(label: str, scored: Scored, threshold: float, *, accepted: bool) -> dict[str, MetricValue]:
    """Share of each group whose score is above the threshold (or, with `accepted` False, is not)."""
    shares = {}
    for name in _values(label, scored):
        hits = [float((score > threshold) == accepted) for u, score in scored if u.labels.get(label) == name]
        shares[name] = _share(hits)
    return shares


def _share(hits: Sequence[float]) -> MetricValue:
    """The mean of zeros and ones; of many, how many ones a replicate has is drawn at once."""
    rate, number = float(np.mean(hits)), len(hits)
    if number <= LARGE:
        return MetricValue(rate, number, "utterances", *mean_interval(hits))
    drawn = np.random.default_rng(0).binomial(number, rate, size=REPLICATES) / number
    return MetricValue(rate, number, "utterances", *percentile_interval(drawn))


def _values(label: str, scored: Scored) -> list[str]:
    return sorted({str(u.labels[label]) for u, _ in scored if u.labels.get(label)})


def write_scores(path: Path, scored: Iterable[tuple[Utterance, float]]) -> None:
    """Writes one line per utterance: its id, its attack, its class and its score."""
    lines = ["utterance\tattack\tlabel\tscore"]
    for utterance, score in scored:
        attack = utterance.labels["attack"]
        lines.append(f"{utterance.id}\t{attack}\t{'bonafide' if attack == BONA_FIDE else 'spoof'}\t{score:.6f}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def errors_at(threshold: float, real: Scored, spoofed: Scored) -> dict[str, MetricValue]:
    """The share of spoofed speech that passes and of real speech that does not, at one threshold."""
    found = {}
    for name, scored, accepted in (("false_acceptance", spoofed, True), ("false_rejection", real, False)):
        hits = [float((score > threshold) == accepted) for _, score in scored]
        found[name] = _share(hits)
    return found
