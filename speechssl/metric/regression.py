"""Regression metrics: of quality scores, such as mean opinion scores (MOS) from 1 to 5, of ages, of symptoms.

N utterances, U resampled units, R replicates.

Conventions
-----------
References and hypotheses are (N,) real numbers in the same order. At the level of utterances each pair counts once. At
the level of systems the scores of each system are averaged first, references and hypotheses alike, and each system
counts once, however many utterances it has.

Metrics
-------
* 'mse': mean squared error; 'rmse': its root, whose interval is the root of that of 'mse'; 'mae': mean absolute error.
* 'r2': the share of the references' variance that is explained: 1 - squared errors / squared distances from their mean,
  so 0 for the mean of the references, and below 0 for what is worse.
* 'ccc': concordance: 2 cov / (var + var + squared difference of the means), which a wrong scale or offset lowers (Lin
  1989, "A concordance correlation coefficient to evaluate reproducibility", eq. 3; deviations over N).
* 'lcc': linear correlation (Pearson).
* 'srcc': rank correlation (Spearman), ties having their mean rank.
* 'ktau': Kendall's tau-b: concordant less discordant pairs, over the geometric mean of the pairs that are not tied on
  the one side and on the other.

A hypothesis that is the same for all has no order, and so correlations of 0 without an interval; references that are
all the same are refused.

Both levels, and 'mse', 'lcc', 'srcc' and 'ktau', are those of Huang et al. 2022 (VoiceMOS challenge), arXiv:2203.11389;
definitions as `scipy.stats.{pearsonr,spearmanr,kendalltau}`;
'r2' as `sklearn.metrics.r2_score`.

Intervals are 95 % bootstrap intervals over utterances (or over `groups` such as listeners or speakers), and over
systems. A replicate is a weighting of the pairs, so that all replicates are computed at once.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from speechssl.errors import SpeechsslError
from speechssl.metric.detection import Floats
from speechssl.metric.interval import bootstrap_interval, mean_interval
from speechssl.result import MetricValue

ERRORS = ("mse", "rmse", "mae")
CORRELATIONS = ("ccc", "lcc", "srcc", "ktau")
MEASURES = (*ERRORS, "r2", *CORRELATIONS)
LEAST = 2  # pairs that a correlation needs
BLOCK = 1024  # columns of the table of pairs held at once by Kendall's tau
ROUNDING = 1e-24  # share of the squares that is left of equal values when their mean is taken off
CHUNK = 4_000_000  # weights held at once: 32 MB
Weighted = Callable[[Floats, Floats, Floats], Floats]
"""(R, N) weights, references (N,), hypotheses (N,) -> correlations (R,), NaN where undefined."""


def regression_metrics(
    references: ArrayLike,
    hypotheses: ArrayLike,
    *,
    systems: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    measures: Sequence[str] = MEASURES,
    seed: int = 0,
) -> dict[str, MetricValue]:
    """Measures at the level of utterances and, where systems are named, of systems.

    Args:
        references: (N,) true scores.
        hypotheses: (N,) predicted scores.
        systems: (N,) which system made each utterance; None = only utterances are measured.
        groups: (N,) what is resampled for the intervals of utterances; None = utterances.
        measures: some of `MEASURES`; the interval of 'ktau' costs 1000 N^2 operations.
        seed: of the intervals.

    Returns:
        Each measure, and the same with 'system ' before.

    Raises:
        SpeechsslError: an unknown measure, unequal numbers, fewer than two pairs, numbers that are not finite, or
            references all the same.
    """
    for name in measures:
        if name not in MEASURES:
            raise SpeechsslError(f"`measures` must be some of {', '.join(MEASURES)}, but holds '{name}'.")
    wanted, given = _numbers(references, "references"), _numbers(hypotheses, "hypotheses")
    if wanted.size != given.size:
        raise SpeechsslError(
            f"There must be as many hypotheses as references, but there are {given.size} and {wanted.size}."
        )
    found = _measure(wanted, given, _units(groups, wanted.size, "groups"), "utterances", measures, seed)
    if systems is not None:
        units = _units(systems, wanted.size, "systems")
        wanted, given = system_means(wanted, units), system_means(given, units)
        level = _measure(wanted, given, np.arange(wanted.size), "systems", measures, seed)
        found |= {f"system {name}": value for name, value in level.items()}
    return found


def system_means(scores: ArrayLike, systems: ArrayLike) -> Floats:
    """The mean score of each system, in sorted order of the systems; both (N,)."""
    units = np.unique(np.asarray(systems), return_inverse=True)[1]
    means: Floats = np.bincount(units, weights=np.asarray(scores, dtype=np.float64)) / np.bincount(units)
    return means


def _measure(  # noqa: PLR0917  private, and called from one function
    wanted: Floats, given: Floats, units: NDArray[np.intp], kind: str, measures: Sequence[str], seed: int
) -> dict[str, MetricValue]:
    if wanted.size < LEAST:
        raise SpeechsslError(f"There must be at least {LEAST} {kind} to correlate, but there are {wanted.size}.")
    if np.ptp(wanted) == 0:
        raise SpeechsslError(
            f"The references of all {wanted.size} {kind} are {wanted[0]}, so nothing correlates with them."
        )
    found = {name: _error(name, wanted - given, units, kind, seed) for name in ERRORS if name in measures}
    if "r2" in measures:
        low, high = _interval(weighted_determination, wanted, given, units, seed)
        value = float(weighted_determination(np.ones((1, wanted.size)), wanted, given)[0])
        found["r2"] = MetricValue(value, wanted.size, kind, low, high)
    for name in CORRELATIONS:
        if name not in measures:
            continue
        if np.ptp(given) == 0:
            found[name] = MetricValue(0.0, wanted.size, kind)
        else:
            weighted, plain = _CORRELATIONS[name]
            low, high = _interval(weighted, wanted, given, units, seed)
            found[name] = MetricValue(plain(wanted, given), wanted.size, kind, low, high)
    return found


def _error(name: str, differences: Floats, units: NDArray[np.intp], kind: str, seed: int) -> MetricValue:
    errors = np.abs(differences) if name == "mae" else np.square(differences)
    values = [float(errors.mean()), *mean_interval(errors, groups=units, seed=seed)]
    value, low, high = np.sqrt(values).tolist() if name == "rmse" else values
    return MetricValue(value, differences.size, kind, low, high)


def _interval(
    weighted: Weighted, wanted: Floats, given: Floats, units: NDArray[np.intp], seed: int
) -> tuple[float, float]:
    def statistic(counts: Floats) -> Floats:
        step = max(1, CHUNK // wanted.size)
        parts = [weighted(counts[i : i + step, units], wanted, given) for i in range(0, len(counts), step)]
        return np.concatenate(parts)

    return bootstrap_interval(statistic, int(units.max()) + 1, seed=seed)


def weighted_determination(weights: Floats, references: Floats, hypotheses: Floats) -> Floats:
    """Explained shares of the variance of pairs that count (R, N) `weights` times; (R,), NaN where there is none."""
    spread = _centre(weights, references)[1]
    errors = (weights * np.square(references - hypotheses)).sum(axis=1)
    found: Floats = 1.0 - np.divide(errors, spread, out=np.full_like(spread, np.nan), where=spread > 0)
    return found


def weighted_pearson(weights: Floats, references: Floats, hypotheses: Floats) -> Floats:
    """Linear correlations of pairs that count `weights` times.

    Args:
        weights: (R, N), >= 0.
        references: (N,), or (R, N) where they differ between replicates.
        hypotheses: as the references.

    Returns:
        (R,), NaN where one side has no spread.
    """
    (x, x_spread), (y, y_spread) = _centre(weights, references), _centre(weights, hypotheses)
    return _quotient((weights * x * y).sum(axis=1), x_spread * y_spread)


def weighted_spearman(weights: Floats, references: Floats, hypotheses: Floats) -> Floats:
    """Rank correlations of pairs that count (R, N) `weights` times; as `weighted_pearson`."""
    return weighted_pearson(weights, weighted_ranks(weights, references), weighted_ranks(weights, hypotheses))


def weighted_ranks(weights: Floats, values: Floats) -> Floats:
    """The mean rank of each of (N,) values among values that count (R, N) times, less a half; (R, N)."""
    level = np.unique(values, return_inverse=True)[1]  # (N,) equal values have one level
    mass = np.zeros((len(weights), int(level.max()) + 1))
    np.add.at(mass.T, level, weights.T)
    ranks: Floats = (np.cumsum(mass, axis=1) - mass / 2.0)[:, level]
    return ranks


def weighted_kendall(weights: Floats, references: Floats, hypotheses: Floats) -> Floats:
    """Tau-b of pairs that count (R, N) `weights` times; as `weighted_pearson`. Costs R N^2 operations."""
    balance = np.zeros(len(weights))
    for start in range(0, references.size, BLOCK):
        part = slice(start, start + BLOCK)
        signs = np.sign(references[:, None] - references[part]) * np.sign(hypotheses[:, None] - hypotheses[part])
        balance += ((weights @ signs) * weights[:, part]).sum(axis=1)  # each pair twice: in both orders
    return _quotient(balance, _untied(weights, references) * _untied(weights, hypotheses))


def weighted_concordance(weights: Floats, references: Floats, hypotheses: Floats) -> Floats:
    """Concordance of pairs that count (R, N) `weights` times; as `weighted_pearson`, and 0 where one side alone has
    spread."""
    (x, x_spread), (y, y_spread) = _centre(weights, references), _centre(weights, hypotheses)
    total = weights.sum(axis=1)
    apart = ((weights * (references - hypotheses)).sum(axis=1) / total) ** 2
    bottom = x_spread + y_spread + total * apart
    top = 2.0 * (weights * x * y).sum(axis=1)
    defined = (x_spread > 0) | (y_spread > 0)
    found: Floats = np.divide(top, bottom, out=np.full_like(top, np.nan), where=defined)
    return found


def concordance(references: Floats, hypotheses: Floats) -> float:
    """Lin's concordance of (N,) pairs, of which one side at least has spread."""
    return float(weighted_concordance(np.ones((1, references.size)), references, hypotheses)[0])


_CORRELATIONS: dict[str, tuple[Weighted, Callable[[Floats, Floats], float]]] = {
    "ccc": (weighted_concordance, concordance),
    "lcc": (weighted_pearson, lambda x, y: float(stats.pearsonr(x, y).statistic)),
    "srcc": (weighted_spearman, lambda x, y: float(stats.spearmanr(x, y).statistic)),
    "ktau": (weighted_kendall, lambda x, y: float(stats.kendalltau(x, y).statistic)),
}


def _centre(weights: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Values less their mean (R, N), and their sum of squares (R,), 0 where it is only rounding."""
    centred = values - (weights * values).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
    spread = (weights * centred * centred).sum(axis=1)
    return centred, np.where(spread > ROUNDING * (weights * values * values).sum(axis=1), spread, 0.0)


def _untied(weights: Floats, values: Floats) -> Floats:
    """How many ordered pairs differ in value, (R,)."""
    level = np.unique(values, return_inverse=True)[1]
    mass = np.zeros((int(level.max()) + 1, len(weights)))
    np.add.at(mass, level, weights.T)
    differing: Floats = np.square(weights.sum(axis=1)) - np.square(mass).sum(axis=0)
    return differing


def _quotient(top: Floats, square: Floats) -> Floats:
    """top / sqrt(square), NaN where there is no spread."""
    return np.divide(top, np.sqrt(square), out=np.full_like(top, np.nan), where=square > 0)


def _numbers(values: ArrayLike, name: str) -> Floats:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise SpeechsslError(f"`{name}` must have one dimension, but have shape {numbers.shape}.")
    if not np.isfinite(numbers).all():
        bad = int(np.argmin(np.isfinite(numbers)))
        raise SpeechsslError(f"`{name}` must be finite, but {name}[{bad}] = {numbers[bad]}: did the training diverge?")
    return numbers


def _units(names: Sequence[str] | None, size: int, kind: str) -> NDArray[np.intp]:
    if names is None:
        return np.arange(size)
    if len(names) != size:
        raise SpeechsslError(f"`{kind}` must have one entry per utterance, but have {len(names)} for {size}.")
    return np.unique(np.asarray(names), return_inverse=True)[1].reshape(size)
