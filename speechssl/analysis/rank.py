"""How much room frames take up: RankMe, effective rank, isotropy, spread. All of them fall when a model collapses.

Conventions
-----------
N frames, D width. Everything is computed from the mean and the covariance of the frames, (D, D) in float64, which are
gathered piece by piece: memory does not grow with N. Neighbouring frames say nearly the same, so measure frames that
are some apart: `decorrelation_gap` tells how far, `sample_frames` chooses them. For a measure of utterances, add one
pooled vector for each of them.

Measures
--------
* RankMe: exp of the entropy of p_k = s_k / sum(s) + 1e-7 over the min(N, D) singular values s of the (N, D) matrix,
  not centred. Garrido et al. 2023, eq. 1, arXiv:2210.02885, which takes 25 600 rows.
* Effective rank: the same of the centred matrix without the 1e-7; so an offset that all frames share counts for
  nothing. Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality".
* Isotropy: IsoScore of Rudman et al. 2022, arXiv:2108.07344. It comes to (P - 1) / (D - 1) with the participation ratio
  P = sum(v)^2 / sum(v^2) of the variances v along the principal axes: 1 where all axes have the same variance, 0 where
  one has it all.
* Mean cosine between two frames: near 0 where directions are spread, 1 where all frames point the same way. Ethayarajh
  2019, arXiv:1909.00512.
* Deviation: the standard deviation over frames, averaged over D; what data2vec watches of targets and predictions.
* Spread: root of the share of the frames' squared length that is not their common mean, within [0, 1]. The same at any
  scale, so it can be compared between layers. A choice of ours.

That frames and not only utterances are measured is after Aldeneh et al. 2024, arXiv:2409.10787; the choice of frames by
a gap is ours.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from speechssl.analysis.arrays import Frames, as_rows
from speechssl.errors import SpeechsslError
from speechssl.moments import Moments

SAMPLES = 25_600
"""Rows that RankMe's authors take."""
EPSILON = 1e-7
CHUNK = 4096
"""Rows per product: a short utterance alone would make poor use of a matrix product."""


@dataclass(frozen=True)
class Geometry:
    """How frames lie in their space."""

    rankme: float
    effective_rank: float
    participation_ratio: float
    isotropy: float
    mean_cosine: float
    deviation: float
    """In the unit of the features."""
    spread: float
    n: int
    """Frames."""
    width: int
    note: str = ""
    """What is doubtful, one sentence; '' = nothing."""


class GeometryMeter:
    """Gathers frames and tells their geometry."""

    def __init__(self) -> None:
        self._moments = Moments()
        self._directions = torch.zeros(0, dtype=torch.float64)  # (D,): sum of the frames at unit length
        self._zeros = 0
        self._waiting: list[Tensor] = []
        self._rows = 0

    def add(self, frames: Frames) -> None:
        """Adds (N, D)."""
        rows = as_rows(frames, "frames", width=len(self._directions) or None)
        if not len(self._directions):
            self._directions = torch.zeros(rows.size(1), dtype=torch.float64)
        self._waiting.append(rows)
        self._rows += len(rows)
        if self._rows >= CHUNK:
            self._flush()

    def finish(self) -> Geometry:
        """The geometry of all frames so far.

        Raises:
            SpeechsslError: fewer than two frames.
        """
        self._flush()
        n, width = self._moments.count, len(self._directions)
        if n < 2:
            raise SpeechsslError(f"A geometry needs at least 2 frames, but there are {n}: take more utterances.")
        covariance, mean = self._moments.covariance(), self._moments.mean
        variances = _eigenvalues(covariance)
        raw = _eigenvalues(covariance + torch.outer(mean, mean))
        power = float(covariance.diagonal().sum() + mean.square().sum())
        ratio = participation_ratio(variances)
        directed = n - self._zeros
        return Geometry(
            rankme=rankme(raw.sqrt()[: min(n, width)]),
            effective_rank=effective_rank(variances.sqrt()),
            participation_ratio=ratio,
            isotropy=(ratio - 1) / (width - 1) if width > 1 and ratio else math.nan,
            mean_cosine=_mean_cosine(self._directions, directed),
            deviation=float(self._moments.variance(correction=1).clamp(min=0).sqrt().mean()),
            spread=math.sqrt(float(variances.sum()) / power) if power > 0 else 0.0,
            n=n,
            width=width,
            note=_note(n, width, float(variances.sum())),
        )

    def _flush(self) -> None:
        if not self._rows:
            return
        rows = torch.cat(self._waiting).double()
        self._waiting, self._rows = [], 0
        self._moments.add(rows)
        length = rows.norm(dim=1)
        self._zeros += int((length == 0).sum())
        self._directions += (rows / length.clamp(min=torch.finfo(torch.float64).tiny)[:, None]).sum(dim=0)


def geometry(frames: Frames) -> Geometry:
    """The geometry of (N, D) frames in memory, N >= 2."""
    meter = GeometryMeter()
    meter.add(frames)
    return meter.finish()


def rankme(singular_values: Tensor) -> float:
    """RankMe of the min(N, D) singular values of a matrix; 0 where all of them are 0.

    Paper: Garrido et al. 2023, eq. 1, arXiv:2210.02885.
    """
    s = singular_values.double()
    if not float(s.sum()):
        return 0.0
    p = s / s.sum() + EPSILON
    return float(torch.exp(-(p * p.log()).sum()))


def effective_rank(singular_values: Tensor) -> float:
    """exp of the entropy of the singular values' shares; 0 where all of them are 0.

    Paper: Roy and Vetterli 2007.
    """
    s = singular_values.double()
    if not float(s.sum()):
        return 0.0
    return float(torch.special.entr(s / s.sum()).sum().exp())


def participation_ratio(variances: Tensor) -> float:
    """sum(v)^2 / sum(v^2) of variances along principal axes: how many of them hold the variance; 0 where all are 0."""
    v = variances.double()
    return float(v.sum().square() / v.square().sum()) if float(v.sum()) else 0.0


def sample_frames(
    lengths: Sequence[int], *, generator: torch.Generator, total: int = SAMPLES, gap: int = 1
) -> list[Tensor]:
    """Chooses evenly spaced frames of each utterance, from a random first one.

    Args:
        lengths: frames of each utterance.
        generator: decides the first frame of each.
        total: about how many to choose; all at `gap` where there are fewer.
        gap: frames from one to the next, at least.

    Returns:
        for each utterance the indices of its chosen frames, int64, maybe none.
    """
    if total < 1 or gap < 1:
        raise SpeechsslError(f"`total` and `gap` must be >= 1, but are {total} and {gap}.")
    step = max(float(gap), sum(lengths) / total)
    starts = (torch.rand(len(lengths), generator=generator, dtype=torch.float64) * step).tolist()
    return [
        torch.arange(start, max(length, start), step, dtype=torch.float64).long()
        for start, length in zip(starts, lengths, strict=True)
    ]


def decorrelation_gap(utterances: Iterable[Frames], *, threshold: float = 1 / math.e, longest: int = 100) -> int:
    """The first lag, in frames, at which frames of an utterance correlate less than `threshold`; at most `longest`.

    The mean of each utterance is taken off first: what a speaker has in all frames would never decorrelate. A few tens
    of utterances tell it well enough.

    Args:
        utterances: (T, D) each; those of one frame say nothing.
    """
    products = torch.zeros(longest + 1, dtype=torch.float64)
    pairs = torch.zeros(longest + 1, dtype=torch.float64)
    for frames in utterances:
        rows = as_rows(frames, "utterances").double()
        rows = rows - rows.mean(dim=0)
        for lag in range(min(longest + 1, len(rows))):
            products[lag] += (rows[: len(rows) - lag] * rows[lag:]).sum()
            pairs[lag] += len(rows) - lag
    if not float(products[0]):
        return 1
    correlation = (products / pairs.clamp(min=1)) / (products[0] / pairs[0])
    below = ((correlation < threshold) & (pairs > 0)).nonzero()
    return int(below[0]) if len(below) else longest


def _eigenvalues(matrix: Tensor) -> Tensor:
    """Of a covariance, from the largest on; those that are rounding alone are 0."""
    values = torch.linalg.eigvalsh(matrix).flip(0)
    return torch.where(values > values[0] * len(values) * torch.finfo(values.dtype).eps, values, 0.0)


def _mean_cosine(directions: Tensor, n: int) -> float:
    return float(directions.square().sum() - n) / (n * (n - 1)) if n > 1 else math.nan


def _note(n: int, width: int, variance: float) -> str:
    if not variance:
        return "All frames are the same: the model has collapsed, or hears silence alone."
    if n < width:
        return f"{n} frames in {width} dimensions: no rank can be above {n}, take more."
    return ""
