"""What is measured of scores, pooled and in groups of trials.

N bona fide and M spoofed trials.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speechssl.metric.agnostic_interval import agnostic_dcf_interval
from speechssl.metric.calibration import actual_dcf, is_calibrated, llr_cost, min_llr_cost
from speechssl.metric.detection import equal_error_rate, min_dcf
from speechssl.metric.detection_interval import DetectionBootstrap
from speechssl.metric.interval import REPLICATES
from speechssl.metric.tandem import AsvErrorRates, Form, min_agnostic_dcf, min_tandem_dcf, tandem_weights
from speechssl.metric.tandem_eer import concurrent_tandem_eer
from speechssl.result import MetricValue
from speechssl.scoring import Measure

Floats = NDArray[np.float64]
P_SPOOF, COST_MISS, COST_FALSE_ALARM = 0.05, 1.0, 10.0
"""The costs of ASVspoof 5, track 1."""
MEASURES = {
    "eer": Measure("equal error rate as the official scripts have it", "lower", "share", 2),
    "eer_interpolated": Measure(
        "equal error rate on the line between the points of the ROC curve", "lower", "share", 2
    ),
    "min_dcf": Measure("detection cost at its least threshold", "lower", digits=4),
    "act_dcf": Measure("detection cost at the threshold of log-likelihood ratios", "lower", digits=4),
    "cllr": Measure("cost of log-likelihood ratios, bits", "lower", digits=4),
    "min_cllr": Measure("the same after the best calibration", "lower", digits=4),
    "t_dcf_2019": Measure("least tandem detection cost, form of 2019 and of ASVspoof 5", "lower", digits=4),
    "t_dcf_2021": Measure("least tandem detection cost, form of 2021", "lower", digits=4),
    "t_eer": Measure("concurrent tandem equal error rate", "lower", "share", 2),
    "a_dcf": Measure("least architecture-agnostic detection cost", "lower", digits=4),
}
TANDEM: Mapping[str, Form] = {"t_dcf_2019": "2019", "t_dcf_2021": "2021"}
GROUPED = ("eer", "min_dcf", "act_dcf", "cllr", *TANDEM, "a_dcf")
"""What is measured of groups of trials."""


@dataclass(frozen=True)
class Costs:
    """Of the detection costs of a countermeasure, and how intervals are drawn."""

    p_spoof: float = P_SPOOF
    cost_miss: float = COST_MISS
    cost_false_alarm: float = COST_FALSE_ALARM
    replicates: int = REPLICATES
    """Of the bootstrap; 0 = no intervals."""

    @property
    def weights(self) -> tuple[float, float]:
        """Of misses and of false alarms."""
        return self.cost_miss * (1 - self.p_spoof), self.cost_false_alarm * self.p_spoof


@dataclass(frozen=True)
class Found:
    """Measures of one system on one group of trials."""

    values: Mapping[str, MetricValue]
    calibrated: bool | None = None
    """Whether Cllr is near minCllr; None where it was not asked for."""


def measure_sides(
    bona_fide: Floats,
    spoof: Floats,
    wanted: Collection[str],
    *,
    costs: Costs,
    rates: AsvErrorRates | None = None,
    units: Sequence[NDArray[np.intp]] | None = None,
) -> Found:
    """Measures the scores of a countermeasure by itself, and by t-DCF.

    Args:
        bona_fide: (N,).
        spoof: (M,).
        wanted: names of MEASURES; a_dcf, t_eer and, without `rates`, t-DCF are passed over.
        rates: of the ASV behind it.
        units: what is resampled together, (N,) and (M,); None = each trial by itself.
    """
    dcf = {
        "p_target": 1 - costs.p_spoof, "cost_miss": costs.cost_miss, "cost_false_alarm": costs.cost_false_alarm,
    }  # fmt: skip
    if units is None:  # every measure sorts, which is soon done where each side is sorted
        bona_fide, spoof = np.sort(bona_fide), np.sort(spoof)
    values: dict[str, float] = {}
    for name in wanted:
        if name in {"eer", "eer_interpolated"}:
            values[name] = equal_error_rate(bona_fide, spoof, interpolate=name != "eer")[0]
        elif name == "min_dcf":
            values[name] = min_dcf(bona_fide, spoof, **dcf)
        elif name == "act_dcf":
            values[name] = actual_dcf(bona_fide, spoof, **dcf)
        elif name == "cllr":
            values[name] = llr_cost(bona_fide, spoof)
        elif name == "min_cllr":
            values[name] = min_llr_cost(bona_fide, spoof)
        elif name in TANDEM and rates is not None:
            values[name] = min_tandem_dcf(bona_fide, spoof, rates, form=TANDEM[name])
    intervals = _intervals(bona_fide, spoof, values, costs, rates, units) if costs.replicates else {}
    number = bona_fide.size + spoof.size
    found = {n: MetricValue(v, number, "trials", *intervals.get(n, (None, None))) for n, v in values.items()}
    calibrated = None
    if {"cllr", "min_cllr"} <= set(values):
        calibrated = is_calibrated(values["cllr"], values["min_cllr"])
    return Found(found, calibrated)


def _intervals(  # noqa: PLR0917  as `measure_sides`
    bona_fide: Floats,
    spoof: Floats,
    values: Mapping[str, float],
    costs: Costs,
    rates: AsvErrorRates | None,
    units: Sequence[NDArray[np.intp]] | None,
) -> dict[str, tuple[float | None, float | None]]:
    weights = costs.weights
    threshold = math.log(weights[1] / weights[0])
    tandem = {n: tandem_weights(rates, form=form) for n, form in TANDEM.items() if n in values and rates is not None}
    drawn = DetectionBootstrap(
        bona_fide,
        spoof,
        costs=[weights, *(w[1:] for w in tandem.values())],
        thresholds=[threshold],
        target_units=None if units is None else units[0],
        nontarget_units=None if units is None else units[1],
        replicates=costs.replicates,
    )
    found = {
        "eer": drawn.equal_error_rate(),
        "min_dcf": drawn.least_cost(weights),
        "act_dcf": drawn.cost_at(threshold, weights),
        "cllr": drawn.llr_cost(),
    }
    if "eer_interpolated" in values:
        found["eer_interpolated"] = drawn.interpolated_error_rate()
    if "min_cllr" in values:
        found["min_cllr"] = drawn.min_llr_cost(values["min_cllr"])
    for name, (alone, missed, spoofed) in tandem.items():
        norm = alone + min(missed, spoofed)
        found[name] = drawn.least_cost((missed, spoofed), alone=alone, norm=norm)
    return {name: (_finite(ends[0]), _finite(ends[1])) for name, ends in found.items()}


def _finite(end: float) -> float | None:
    return end if math.isfinite(end) else None


def measure_tandem(verification: Sequence[Floats], countermeasure: Sequence[Floats]) -> MetricValue:
    """t-EER; no interval.

    Args:
        verification: scores of targets, non-targets and spoofs.
        countermeasure: scores of bona fide and spoofed speech.
    """
    number = sum(side.size for side in (*verification, *countermeasure))
    return MetricValue(concurrent_tandem_eer(*verification, *countermeasure), number, "scores")


def measure_verification(
    sides: Sequence[Floats], *, costs: Costs, units: Sequence[NDArray[np.intp]] | None = None
) -> MetricValue:
    """a-DCF of one score for all.

    Args:
        sides: scores of targets, non-targets and spoofs.
        costs: how the interval is drawn; a-DCF has costs of its own.
        units: what is resampled together, of each side; None = each trial by itself.
    """
    target, nontarget, spoof = sides
    value, number = min_agnostic_dcf(target, nontarget, spoof)[0], sum(side.size for side in sides)
    if not costs.replicates:
        return MetricValue(value, number, "trials")
    low, high = agnostic_dcf_interval(sides, units=units, replicates=costs.replicates)
    return MetricValue(value, number, "trials", _finite(low), _finite(high))
