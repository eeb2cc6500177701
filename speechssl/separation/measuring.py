"""Measures estimates of a batch, utterance by utterance, and the results of a split.

B utterances, N sources, S samples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from speechssl.errors import SpeechsslError
from speechssl.files import replacing
from speechssl.metric.interval import mean_interval
from speechssl.metric.perceptual import stoi, wideband_pesq
from speechssl.metric.separation import best_order, reorder, si_sdr
from speechssl.result import MetricValue
from speechssl.separation.waveforms import Mixtures

PERCEPTUAL: Mapping[str, Callable[[Tensor, Tensor], float]] = {"stoi": stoi, "pesq": wideband_pesq}


@dataclass(frozen=True)
class Estimate:
    """What is known of the estimates of one utterance."""

    values: Mapping[str, float]
    """Metric -> mean over sources; NaN where undefined."""
    before: Mapping[str, float]
    """The same of the unprocessed mixture, where asked for."""
    waveforms: Tensor | None = None
    """(N, S) in the order of the references, where they are kept."""


def measure(
    estimates: Tensor, truth: Mixtures, metrics: Sequence[Sequence[str]], *, kept: Sequence[bool]
) -> list[Estimate]:
    """Puts estimates in the best order and measures them.

    Args:
        estimates: (B, N, S).
        metrics: of each utterance; where there is more than one, the mixture is measured as well.
        kept: whether the waveforms are kept, of each utterance.
    """
    ratios, order = best_order(estimates, truth.sources, lengths=truth.lengths)
    mixtures = truth.mixture[:, None].expand_as(truth.sources)
    unprocessed = si_sdr(mixtures, truth.sources, lengths=truth.lengths)  # (B, N)
    ordered = reorder(estimates, order)
    rows = []
    for row, (wanted, keep, length) in enumerate(zip(metrics, kept, truth.lengths.tolist(), strict=True)):
        known = {"si_sdr": float(ratios[row].mean()), "si_sdri": float((ratios[row] - unprocessed[row]).mean())}
        sources, own = truth.sources[row, :, :length], ordered[row, :, :length]
        values = {m: known[m] if m in known else _perceived(m, sources, own) for m in wanted}
        before: dict[str, float] = {}
        if len(wanted) > 1:
            before = {m: _perceived(m, sources, mixtures[row, :, :length]) for m in wanted if m in PERCEPTUAL}
            if "si_sdr" in wanted:
                before["si_sdr"] = float(unprocessed[row].mean())
        rows.append(Estimate(values, before, own.float().cpu().clone() if keep else None))
    return rows


def _perceived(metric: str, sources: Tensor, estimates: Tensor) -> float:
    pairs = zip(sources, estimates, strict=True)
    return float(np.mean([PERCEPTUAL[metric](source, estimate) for source, estimate in pairs]))


def summarise(rows: Sequence[Mapping[str, float]], *, name: str) -> dict[str, MetricValue]:
    """Means over the utterances in which each metric is defined; where some are not, '<metric> undefined' counts them.

    Args:
        name: of the split, for the error.

    Raises:
        SpeechsslError: a metric that is defined nowhere.
    """
    found: dict[str, MetricValue] = {}
    for metric in rows[0]:
        values = np.array([row[metric] for row in rows])
        defined = values[np.isfinite(values)]
        if not len(defined):
            raise SpeechsslError(
                f"The metric '{metric}' is undefined for all of '{name}': are the references speech? Set `metrics`."
            )
        low, high = mean_interval(defined)
        found[metric] = MetricValue(float(defined.mean()), len(defined), "utterances", low, high)
        if len(defined) < len(values):
            share = 1.0 - len(defined) / len(values)
            found[f"{metric} undefined"] = MetricValue(share, len(values), "utterances")
    return found


def write_scores(path: Path, names: Sequence[str], rows: Sequence[Mapping[str, float]]) -> str:
    """One line per utterance; returns the name of the file."""
    metrics = list(rows[0])
    lines = ["\t".join(["utterance", *metrics])]
    lines += ["\t".join([n, *(f"{row[m]:.6f}" for m in metrics)]) for n, row in zip(names, rows, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path.name
