"""How alike two views of the same frames are: CCA, SVCCA, PWCCA, linear CKA.

Conventions
-----------
N frames; the first view is D wide, the second E, c = min of both. All is computed of second moments (`views.py`), so
memory does not grow with N. Correlations of `cca` and `svcca` are of frames that the directions were not fitted to:
those of the frames themselves rise to 1 as N falls to D, whatever the views.

Measures
--------
* CCA: the correlations of the c pairs of directions that correlate most, averaged. 1 for views that are linear maps of
  each other, 0 for independent ones.
* PWCCA: the same, each pair weighted by how much of a view its direction tells: sum over j of |<h_i, x_j>|, with h_i
  the view projected on the direction, at unit length, and x_j the view's columns. Morcos et al. 2018,
  arXiv:1806.05759. The view is the narrower one, or the second of two equally wide ones, as in Pasad et al. The
  authors' code makes the h_i orthogonal first; in the frames of the fit, without regularisation, they are so already.
* SVCCA: CCA between the principal directions that hold 99 % of each view's variance. Raghu et al. 2017,
  arXiv:1706.05806.
* Linear CKA: |Cov(x, y)|^2 / (|Cov(x, x)| |Cov(y, y)|), Frobenius norms. Kornblith et al. 2019, arXiv:1905.00414.
  Without a fit; of fewer frames than dimensions it is too large.

The search for the regularisation is that of Pasad et al. 2021, arXiv:2107.04734, by its code (`codes/tools/tools.py` of
layerwise-analysis): of ten folds eight are fitted, one chooses what is added to the diagonals, one tests; three times,
averaged. There rows are dealt to the folds one by one; here `Views.add` keeps an utterance together. There 1e-11 to
1e-5 of the largest variance are tried in random pairs; here up to 0.1, all pairs where the narrower view has at most
128 columns, and the same for both views otherwise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from speechssl.analysis.arrays import Frames
from speechssl.analysis.views import Blocks, Views
from speechssl.errors import SpeechsslError

EPSILONS = (1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1e-1)
"""Shares of a view's largest variance."""
PAIRED = 128
"""Columns of the narrower view up to which all pairs are tried."""
TRIALS = 3
KEPT = 0.99


@dataclass(frozen=True)
class Correlation:
    """How two views correlate in frames that were held out; means over the trials."""

    mean: float
    """CCA (or SVCCA)."""
    pwcca: float
    low: float
    """The smallest PWCCA of the trials."""
    high: float
    """The largest one."""
    epsilons: tuple[tuple[float, float], ...]
    """What was added to the diagonals in each trial, as shares of each view's largest variance."""
    directions: int
    """Pairs, of the last trial."""
    n: int
    """Rows, over all folds."""
    note: str = ""
    """What is doubtful, one sentence; '' = nothing."""


@dataclass(frozen=True)
class _Fit:
    """Whitened views; L and M directions with variance."""

    x: Tensor
    """(D, L) principal directions."""
    y: Tensor
    """(E, M)."""
    x_variance: Tensor
    """(L,), in shares of the largest variance of a column, as `EPSILONS` are."""
    y_variance: Tensor
    """(M,)."""
    x_scale: float
    y_scale: float
    cross: Tensor
    """(L, M) covariance of the principal components."""

    def solve(self, x_epsilon: float, y_epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        """Correlations (c,) and directions (D, c) and (E, c)."""
        x_root = ((self.x_variance + x_epsilon) * self.x_scale).rsqrt()
        y_root = ((self.y_variance + y_epsilon) * self.y_scale).rsqrt()
        left, s, right = torch.linalg.svd(x_root[:, None] * self.cross * y_root, full_matrices=False)
        return s, self.x @ (x_root[:, None] * left), self.y @ (y_root[:, None] * right.T)


def cca(
    views: Views,
    first: str,
    second: str,
    *,
    epsilons: Sequence[float] = EPSILONS,
    trials: int = TRIALS,
    seed: int = 0,
) -> Correlation:
    """CCA and PWCCA of two views in held-out folds, with the regularisation that a further fold likes best.

    Args:
        views: with at least three filled folds.
        first: name of a view.
        second: of another.
        epsilons: what may be added to the diagonals, as shares of a view's largest variance.
        trials: at most; each takes two more folds for choosing and testing.
        seed: decides which.

    Raises:
        SpeechsslError: too few folds, or a view that is constant.
    """
    scores, chosen = [], []
    for train, dev, test in _splits(views, trials, seed, held_out=2):
        fit = _fit(views.blocks(first, second, train), first, second)
        tuning = views.blocks(first, second, [dev])
        best = (-math.inf, 0.0, 0.0)
        for x_epsilon, y_epsilon in _candidates(epsilons, min(fit.cross.shape)):
            _, x, y = fit.solve(x_epsilon, y_epsilon)
            best = max(best, (_projection_weighted(tuning, x, y, _correlate(tuning, x, y)), x_epsilon, y_epsilon))
        chosen.append(best[1:])
        scores.append(_score(views.blocks(first, second, [test]), *fit.solve(*best[1:])[1:]))
    return _summary(views, first, second, scores, tuple(chosen))


def svcca(
    views: Views, first: str, second: str, *, kept: float = KEPT, trials: int = TRIALS, seed: int = 0
) -> Correlation:
    """CCA between the principal directions that hold `kept` of each view's variance, in held-out folds.

    Arguments and errors as `cca`; two filled folds are enough.
    """
    scores = []
    for train, test, _ in _splits(views, trials, seed, held_out=1):
        fit = _fit(views.blocks(first, second, train), first, second, kept=kept)
        _, x, y = fit.solve(0.0, 0.0)
        scores.append(_score(views.blocks(first, second, [test]), x, y))
    return _summary(views, first, second, scores, ((0.0, 0.0),) * len(scores))


def linear_cka(views: Views, first: str, second: str) -> float:
    """Linear CKA of all rows, within [0, 1].

    Raises:
        SpeechsslError: a view that is constant.

    Paper: Kornblith et al. 2019, arXiv:1905.00414.
    """
    blocks = views.blocks(first, second)
    for name, covariance in ((first, blocks.xx), (second, blocks.yy)):
        if not float(covariance.diagonal().max()):
            raise _constant(name)
    return float(blocks.xy.square().sum() / (blocks.xx.norm() * blocks.yy.norm()))


def canonical_correlations(first: Frames, second: Frames, *, epsilon: float = 0.0) -> Tensor:
    """The c canonical correlations of two views in memory, (N, D) and (N, E), in the rows of the fit; descending.

    Of fewer rows than dimensions they are 1 and mean nothing: see `cca`.
    """
    views = Views(folds=1)
    views.add({"first": first, "second": second})
    return _fit(views.blocks("first", "second"), "first", "second").solve(epsilon, epsilon)[0].clamp(max=1.0)


def projection_weighted(first: Frames, second: Frames, *, epsilon: float = 0.0) -> float:
    """PWCCA of two views in memory, in the rows of the fit."""
    views = Views(folds=1)
    views.add({"first": first, "second": second})
    blocks = views.blocks("first", "second")
    correlations, x, y = _fit(blocks, "first", "second").solve(epsilon, epsilon)
    return _projection_weighted(blocks, x, y, correlations.clamp(max=1.0))


def _splits(views: Views, trials: int, seed: int, *, held_out: int) -> list[tuple[list[int], int, int]]:
    """(folds to fit, a fold, another one or the same) of each trial; no fold is held out twice."""
    filled = views.filled()
    if len(filled) < held_out + 1:
        raise SpeechsslError(
            f"Held-out correlations need rows in {held_out + 1} folds, but {len(filled)} have some: "
            "give more utterances, or more folds."
        )
    order = np.random.default_rng(seed).permutation(filled).tolist()
    groups = [order[i : i + held_out] for i in range(0, len(order) - held_out + 1, held_out)][:trials]
    return [([f for f in filled if f not in group], group[0], group[-1]) for group in groups]


def _candidates(epsilons: Sequence[float], narrow: int) -> list[tuple[float, float]]:
    if narrow > PAIRED:
        return [(e, e) for e in epsilons]
    return [(x, y) for x in epsilons for y in epsilons]


def _fit(blocks: Blocks, first: str, second: str, *, kept: float = 1.0) -> _Fit:
    x, x_variance, x_scale = _principal(blocks.xx, first, kept)
    y, y_variance, y_scale = _principal(blocks.yy, second, kept)
    return _Fit(x, y, x_variance, y_variance, x_scale, y_scale, x.T @ blocks.xy @ y)


def _principal(covariance: Tensor, name: str, kept: float) -> tuple[Tensor, Tensor, float]:
    """Principal directions that have variance, their variances in shares of the largest column's, and that one."""
    scale = float(covariance.diagonal().max())
    if not scale:
        raise _constant(name)
    values, vectors = torch.linalg.eigh(covariance / scale)
    values, vectors = values.flip(0), vectors.flip(1)
    count = int((values > values[0] * len(values) * torch.finfo(values.dtype).eps).sum())
    if kept < 1:
        share = values[:count].cumsum(0) / values[:count].sum()
        count = min(count, int((share < kept).sum()) + 1)
    return vectors[:, :count], values[:count], scale


def _correlate(blocks: Blocks, x: Tensor, y: Tensor) -> Tensor:
    """(c,) correlations of the rows along directions (D, c) and (E, c); 0 along one without variance."""
    cross = (x * (blocks.xy @ y)).sum(dim=0)
    power = (x * (blocks.xx @ x)).sum(dim=0).clamp(min=0) * (y * (blocks.yy @ y)).sum(dim=0).clamp(min=0)
    return torch.where(power > 0, cross / power.sqrt().clamp(min=torch.finfo(power.dtype).tiny), 0.0).clamp(-1, 1)


def _projection_weighted(blocks: Blocks, x: Tensor, y: Tensor, correlations: Tensor) -> float:
    """Weights are of the narrower view, or of the second of two equally wide ones."""
    covariance, directions = (blocks.xx, x) if len(blocks.xx) < len(blocks.yy) else (blocks.yy, y)
    shared = covariance @ directions  # (width, c)
    length = (directions * shared).sum(dim=0).clamp(min=0).sqrt()
    weight = torch.where(length > 0, shared.abs().sum(dim=0) / length.clamp(min=1e-300), 0.0)
    return float((weight * correlations).sum() / weight.sum()) if float(weight.sum()) else 0.0


def _score(blocks: Blocks, x: Tensor, y: Tensor) -> tuple[float, float, int]:
    correlations = _correlate(blocks, x, y)
    return float(correlations.mean()), _projection_weighted(blocks, x, y, correlations), len(correlations)


def _summary(
    views: Views,
    first: str,
    second: str,
    scores: list[tuple[float, float, int]],
    epsilons: tuple[tuple[float, float], ...],
) -> Correlation:
    blocks = views.blocks(first, second)
    weighted = [pwcca for _, pwcca, _ in scores]
    width = max(len(blocks.xx), len(blocks.yy))
    note = ""
    if blocks.count < width:
        note = f"{blocks.count} rows in {width} dimensions: what the views share is mostly hidden by regularisation."
    return Correlation(
        mean=float(np.mean([mean for mean, _, _ in scores])),
        pwcca=float(np.mean(weighted)),
        low=min(weighted),
        high=max(weighted),
        epsilons=epsilons,
        directions=scores[-1][2],
        n=blocks.count,
        note=note,
    )


def _constant(name: str) -> SpeechsslError:
    return SpeechsslError(
        f"The view '{name}' is the same in all rows and correlates with nothing: is there one class only, "
        "or has the model collapsed?"
    )
