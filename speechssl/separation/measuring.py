"""Measures estimates of a batch, utterance by utterance, and the results of a split.

B utterances, N sources, S samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from speechssl.errors import SpeechsslError
from speechssl.files import replacing
from speechssl.metric.interval import mean_interval
from speechssl.metric.perceptual import METRICS, Heard, perceive
from speechssl.metric.separation import best_order, reorder, si_sdr
from speechssl.result import MetricValue
from speechssl.separation.waveforms import Mixtures


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
    estimates: Tensor, truth: Mixtures, metrics: Sequence[Sequence[str]], *, kept: Sequence[bool], processes: int = 1
) -> list[Estimate]:
    """Puts estimates in the best order and measures them.

    Args:
        estimates: (B, N, S).
        metrics: of each utterance; where there is more than one, the mixture is measured as well.
        kept: whether the waveforms are kept, of each utterance.
        processes: see `perceive`.
    """
    ratios, order = best_order(estimates, truth.sources, lengths=truth.lengths)
    mixtures = truth.mixture[:, None].expand_as(truth.sources)
    unprocessed = si_sdr(mixtures, truth.sources, lengths=truth.lengths)  # (B, N)
    ordered = reorder(estimates, order)
    lengths: list[int] = truth.lengths.tolist()
    # What is heard of all utterances, in the order in which it is asked for below.
    heard: list[Heard] = []
    for row, (wanted, length) in enumerate(zip(metrics, lengths, strict=True)):
        for others in (ordered, mixtures)[: 1 + (len(wanted) > 1)]:
            heard += _heard(wanted, truth.sources[row, :, :length], others[row, :, :length])
    perceived = iter(perceive(heard, processes=processes))
    rows = []
    for row, (wanted, keep, length) in enumerate(zip(metrics, kept, lengths, strict=True)):
        values = {"si_sdr": float(ratios[row].mean()), "si_sdri": float((ratios[row] - unprocessed[row]).mean())}
        values |= _means(wanted, perceived, len(truth.sources[row]))
        before: dict[str, float] = {}
        if len(wanted) > 1:
            before = _means(wanted, perceived, len(truth.sources[row]))
            if "si_sdr" in wanted:
                before["si_sdr"] = float(unprocessed[row].mean())
        own = ordered[row, :, :length].float().cpu().clone() if keep else None
        rows.append(Estimate({name: values[name] for name in wanted}, before, own))
    return rows


def _heard(wanted: Sequence[str], sources: Tensor, estimates: Tensor) -> list[Heard]:
    """Sources and estimates (N, S), for each metric that is of hearing."""
    pairs = list(zip(_arrays(sources), _arrays(estimates), strict=True))
    return [(metric, *pair) for metric in wanted if metric in METRICS for pair in pairs]


def _arrays(waveforms: Tensor) -> list[NDArray[np.float32]]:
    return list(waveforms.detach().cpu().numpy())


def _means(wanted: Sequence[str], perceived: Iterator[float], sources: int) -> dict[str, float]:
    """Metric of hearing -> its mean over the sources, which come next."""
    return {m: float(np.mean([next(perceived) for _ in range(sources)])) for m in wanted if m in METRICS}


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
