"""Small classifiers and regressions on frozen features: what a linear look at a layer can tell.

Conventions
-----------
N samples (frames, segments or utterances), D width. A probe is linear, on standardised features, with a squared penalty
chosen on a fifth of the training groups; scikit-learn fits it. Samples of one group (an utterance, a speaker) should be
in training or in test, never in both, but for what is to be told of the group itself: `split_groups`.

Control tasks: each *type* of sample gets one random answer, drawn as often as the real ones occur, in training and test
alike. What a probe learns of them it has memorised, so a probe is good by its *selectivity*: its score less that of the
control. Hewitt and Liang 2019, arXiv:1909.03368. There a type is a word of the text; here a caller says what it is (the
word for phones, the speaker for gender and language); without types each sample has its own, and the control falls to
chance: it then tells that the split is sound.

Intervals are 95 % bootstrap intervals over the test groups, see `speechssl.metric.interval`.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler, normalize

from speechssl.analysis.arrays import Frames, as_rows
from speechssl.errors import SpeechsslError
from speechssl.metric.classification import accuracy, unweighted_average_recall
from speechssl.metric.interval import bootstrap_interval, mean_interval
from speechssl.metric.regression import regression_metrics, weighted_determination
from speechssl.result import MetricValue

Matrix = NDArray[np.float32]
Labels = NDArray[Any]
Floats = NDArray[np.float64]
TUNED = 0.2
"""Share of the training groups that chooses the penalty."""
LEAST_TUNED = 10
"""Samples below which a choice would be chance; the middle penalty is taken then."""


@dataclass(frozen=True)
class Samples:
    """What a probe learns from, or is tested on."""

    features: Frames
    """(N, D)."""
    labels: Sequence[str] | Sequence[int] | Sequence[float] | Labels
    """(N,) classes, or numbers."""
    groups: Sequence[str] | Sequence[int] | Labels | None = None
    """(N,) utterance or speaker; None = each sample is its own."""
    types: Sequence[str] | Sequence[int] | Labels | None = None
    """(N,) what the control task gives one answer to; None = each sample is its own."""


@dataclass(frozen=True)
class ProbeConfig:
    """How probes are fitted."""

    penalties: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4)
    """Tried, per sample: scikit-learn's C is 1 / (penalty * N), its alpha penalty * N."""
    most_train: int = 10_000
    """Samples drawn from more; keeps a probe of 40 classes and 768 dimensions to seconds."""
    most_test: int = 20_000
    iterations: int = 300
    """Of the logistic regression, at most."""
    seed: int = 0
    """Of draws, splits, controls and intervals."""


@dataclass(frozen=True)
class Probe:
    """What a probe told of samples that it was not fitted to."""

    score: MetricValue
    """Share of right classes, or determination (R2) of a number."""
    second: MetricValue
    """Mean recall of the classes, or linear correlation of a number."""
    baseline: float
    """The score without features: of the most frequent class, or 0."""
    control: MetricValue | None
    """The same probe on random answers by type; None where the types are too few to draw two answers."""
    selectivity: MetricValue | None
    """Score less control (0 where that is below)."""
    penalty: float
    train: int
    """Samples it was fitted to, those that chose the penalty included."""
    note: str = ""
    """What is doubtful, one sentence; '' = nothing."""


def probe_classes(train: Samples, test: Samples, config: ProbeConfig | None = None) -> Probe:
    """Logistic regression of classes: phone, speaker, tone, gender, language.

    Raises:
        SpeechsslError: shapes that don't fit, or fewer than two classes in training.
    """
    config = config or ProbeConfig()
    x, y, test_x, test_y, parts = _prepare(train, test, config)
    if len(set(y.tolist())) < 2:
        raise SpeechsslError(
            f"A probe needs two classes, but all {len(y)} training samples are '{y[0]}': "
            "leave this probe out, or take a corpus with more."
        )

    def make(penalty: float, n: int) -> Any:
        return LogisticRegression(C=1 / (penalty * n), max_iter=config.iterations, tol=1e-3)

    penalty = _choose(make, x, y, parts[0].groups, config)
    given, slow = _fit_predict(make, penalty, x, y, test_x)
    groups = _groups(parts[1], len(test_y))
    control, selectivity, slow_control = None, None, False
    train_answers, test_answers = control_answers(parts[0], parts[1], seed=config.seed)
    if len(set(train_answers.tolist())) > 1:
        guessed, slow_control = _fit_predict(make, penalty, x, train_answers, test_x)
        hit, chance = given == test_y, guessed == test_answers
        control = _share(chance, groups, config.seed)
        gain = hit.astype(np.float64) - chance
        selectivity = MetricValue(
            float(gain.mean()), len(gain), "samples", *mean_interval(gain, groups=groups, seed=config.seed)
        )
    classes, counts = np.unique(y, return_counts=True)
    listed = test_y.tolist(), given.tolist()
    return Probe(
        score=replace(accuracy(*listed, groups=groups.tolist(), seed=config.seed), unit="samples"),
        second=replace(unweighted_average_recall(*listed, groups=groups.tolist(), seed=config.seed), unit="samples"),
        baseline=float((test_y == classes[counts.argmax()]).mean()),
        control=control,
        selectivity=selectivity,
        penalty=penalty,
        train=len(y),
        note=_note(x, set(test_y.tolist()) - set(classes.tolist()), control is None, slow or slow_control),
    )


def probe_value(train: Samples, test: Samples, config: ProbeConfig | None = None) -> Probe:
    """Ridge regression of a number: log F0, energy, duration.

    Raises:
        SpeechsslError: shapes that don't fit, or a number that is the same in all samples of training or test.
    """
    config = config or ProbeConfig()
    x, y, test_x, test_y, parts = _prepare(train, test, config, numbers=True)
    for name, values in (("training", y), ("test", test_y)):
        if float(values.min()) == float(values.max()):
            raise SpeechsslError(f"The number to tell is {values[0]} in all {name} samples: leave this probe out.")

    def make(penalty: float, n: int) -> Any:
        return Ridge(alpha=penalty * n)

    penalty = _choose(make, x, y, parts[0].groups, config)
    given = _fit_predict(make, penalty, x, y, test_x)[0].astype(np.float64)
    groups = _groups(parts[1], len(test_y))
    found = regression_metrics(
        test_y, given, groups=groups.astype(str).tolist(), measures=("r2", "lcc"), seed=config.seed
    )
    control, selectivity = None, None
    train_answers, test_answers = control_answers(parts[0], parts[1], seed=config.seed)
    if min(len(set(train_answers.tolist())), len(set(test_answers.tolist()))) > 1:
        guessed = _fit_predict(make, penalty, x, train_answers, test_x)[0].astype(np.float64)
        units = np.unique(groups, return_inverse=True)[1]

        def chance(counts: Floats) -> Floats:
            return weighted_determination(counts[:, units], test_answers, guessed)

        def gain(counts: Floats) -> Floats:
            return weighted_determination(counts[:, units], test_y, given) - np.maximum(chance(counts), 0)

        control, selectivity = _replicated(chance, units, config.seed), _replicated(gain, units, config.seed)
    return Probe(
        score=replace(found["r2"], unit="samples"),
        second=replace(found["lcc"], unit="samples"),
        baseline=0.0,
        control=control,
        selectivity=selectivity,
        penalty=penalty,
        train=len(y),
        note=_note(x, set(), control is None, slow=False),
    )


def probe_neighbours(train: Samples, test: Samples, *, k: int = 20, seed: int = 0) -> MetricValue:
    """Accuracy of the vote of the `k` nearest training samples by cosine; nothing is learned.

    Raises:
        SpeechsslError: shapes that don't fit, or no samples.
    """
    x, test_x = (_rows(s, name) for s, name in ((train, "train"), (test, "test")))
    y, test_y = np.asarray(train.labels), np.asarray(test.labels)
    voters = KNeighborsClassifier(n_neighbors=min(k, len(x)), algorithm="brute").fit(normalize(x), y)
    given = voters.predict(normalize(test_x))
    return _share(given == test_y, _groups(test, len(test_y)), seed)


def split_groups(
    groups: Sequence[str] | Sequence[int] | Labels, *, share: float = 0.3, seed: int = 0
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of training and test samples, (M,) and (N - M,), no group in both.

    Args:
        groups: (N,) such as speakers for a probe of phones, utterances for one of speakers.
        share: of the groups for the test.

    Raises:
        SpeechsslError: fewer than two groups.
    """
    names = np.asarray(groups)
    if len(set(names.tolist())) < 2:
        raise SpeechsslError("Training and test need a group each, but there is one only: take more speakers.")
    splitter = GroupShuffleSplit(n_splits=1, test_size=share, random_state=seed)
    train, test = next(splitter.split(np.zeros(len(names)), groups=names))
    return train, test


def control_answers(train: Samples, test: Samples, *, seed: int) -> tuple[Labels, Labels]:
    """Random answers, one for each type, drawn from the training labels: (N,) and (M,).

    Paper: Hewitt and Liang 2019, arXiv:1909.03368.
    """
    labels = np.asarray(train.labels)
    size = len(labels), len(np.asarray(test.labels))
    if train.types is None or test.types is None:
        types = np.arange(sum(size))
    else:
        types = np.unique(
            np.concatenate((np.asarray(train.types).astype(str), np.asarray(test.types).astype(str))),
            return_inverse=True,
        )[1]
    answers = np.random.default_rng(seed).choice(labels, size=int(types.max()) + 1)[types]
    return answers[: size[0]], answers[size[0] :]


def _prepare(
    train: Samples, test: Samples, config: ProbeConfig, *, numbers: bool = False
) -> tuple[Matrix, Labels, Matrix, Labels, tuple[Samples, Samples]]:
    """Draws samples and standardises features."""
    parts = _draw(train, "train", config.most_train, config.seed), _draw(test, "test", config.most_test, config.seed)
    x, test_x = (_rows(part, name) for part, name in zip(parts, ("train", "test"), strict=True))
    if x.shape[1] != test_x.shape[1]:
        raise SpeechsslError(f"Training has {x.shape[1]} dimensions and test {test_x.shape[1]}: give the same layer.")
    scaler = StandardScaler().fit(x)
    y, test_y = (np.asarray(part.labels, dtype=np.float64 if numbers else None) for part in parts)
    return scaler.transform(x), y, scaler.transform(test_x), test_y, parts


def _draw(samples: Samples, name: str, most: int, seed: int) -> Samples:
    labels = np.asarray(samples.labels)
    if not len(labels) or len(samples.features) != len(labels):
        raise SpeechsslError(f"`{name}` must have labels for its {len(samples.features)} rows, but has {len(labels)}.")
    for what, values in (("groups", samples.groups), ("types", samples.types)):
        if values is not None and len(values) != len(labels):
            raise SpeechsslError(f"`{name}` must have {what} for its {len(labels)} rows, but has {len(values)}.")
    if len(labels) <= most:
        return samples
    kept = np.sort(np.random.default_rng(seed).choice(len(labels), size=most, replace=False))
    groups, types = (None if v is None else np.asarray(v)[kept] for v in (samples.groups, samples.types))
    return Samples(samples.features[kept], labels[kept], groups, types)


def _rows(samples: Samples, name: str) -> Matrix:
    rows: Matrix = as_rows(samples.features, name).numpy().astype(np.float32)
    if not len(rows) or len(rows) != len(np.asarray(samples.labels)):
        raise SpeechsslError(f"`{name}` must have a label for each of its {len(rows)} rows, and some rows.")
    return rows


def _choose(make: Callable[[float, int], Any], x: Matrix, y: Labels, groups: Any, config: ProbeConfig) -> float:
    """The penalty that does best on a fifth of the groups; the middle one where that can't be told."""
    middle = config.penalties[len(config.penalties) // 2]
    names = np.arange(len(y)) if groups is None else np.asarray(groups)
    if len(config.penalties) == 1 or len(set(names.tolist())) < 2:
        return middle
    fitted, tuned = split_groups(names, share=TUNED, seed=config.seed)
    if len(set(y[fitted].tolist())) < 2 or len(tuned) < LEAST_TUNED:
        return middle
    scores = []
    for penalty in config.penalties:
        model = make(penalty, len(fitted))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            scores.append(model.fit(x[fitted], y[fitted]).score(x[tuned], y[tuned]))
    return config.penalties[int(np.argmax(scores))]


def _fit_predict(
    make: Callable[[float, int], Any], penalty: float, x: Matrix, y: Labels, test_x: Matrix
) -> tuple[Labels, bool]:
    """What it says of the test, and whether it had no time to converge."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model = make(penalty, len(y)).fit(x, y)
    slow = any(issubclass(w.category, ConvergenceWarning) for w in caught)
    return model.predict(test_x), slow


def _groups(samples: Samples, size: int) -> Labels:
    return np.arange(size) if samples.groups is None else np.asarray(samples.groups)


def _share(right: NDArray[np.bool_], groups: Labels, seed: int) -> MetricValue:
    return MetricValue(float(right.mean()), len(right), "samples", *mean_interval(right, groups=groups, seed=seed))


def _replicated(statistic: Callable[[Floats], Floats], units: NDArray[np.intp], seed: int) -> MetricValue:
    number = int(units.max()) + 1

    def in_parts(counts: Floats) -> Floats:  # samples may be many times the units
        step = max(1, 4_000_000 // len(units))
        return np.concatenate([statistic(counts[i : i + step]) for i in range(0, len(counts), step)])

    value = float(statistic(np.ones((1, number)))[0])
    return MetricValue(value, len(units), "samples", *bootstrap_interval(in_parts, number, seed=seed))


def _note(x: Matrix, unseen: set[Any], no_control: bool, slow: bool) -> str:
    if not x.any():
        return "The features are the same in all samples: the model has collapsed."
    if unseen:
        return f"{len(unseen)} classes of the test do not occur in training, and are never right."
    if len(x) < x.shape[1]:
        return f"{len(x)} training samples in {x.shape[1]} dimensions: the penalty decides much."
    if slow:
        return "The logistic regression was stopped before it converged."
    return "The types are too few for a control task." if no_control else ""
