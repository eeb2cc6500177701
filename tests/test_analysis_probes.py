"""Probes, against scikit-learn by hand and on features of which it is known what they tell."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.preprocessing import StandardScaler

from speechssl.analysis.probes import (
    ProbeConfig,
    Samples,
    control_answers,
    probe_classes,
    probe_neighbours,
    probe_value,
    split_groups,
)
from speechssl.errors import SpeechsslError

ONE = ProbeConfig(penalties=(1e-3,))


def _phones(n: int, seed: int, *, noise: float = 1.0) -> Samples:
    """Four classes of ten words each, in eight dimensions of which five tell the class."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(4, size=n, p=[0.4, 0.3, 0.2, 0.1])
    words = labels * 10 + generator.integers(10, size=n)
    means = np.random.default_rng(9).normal(size=(4, 8)) * np.array([3, 3, 3, 3, 3, 0, 0, 0])
    features = means[labels] + generator.normal(size=(n, 8)) * noise + 50
    names = np.array(["a", "b", "c", "d"])[labels]
    return Samples(features.astype(np.float32), names, groups=generator.integers(20, size=n), types=words)


def test_a_probe_equals_logistic_regression_by_hand() -> None:
    train, test = _phones(300, 0, noise=3), _phones(200, 1, noise=3)
    found = probe_classes(train, test, ONE)
    scaler = StandardScaler().fit(train.features)
    model = LogisticRegression(C=1 / (1e-3 * 300), max_iter=1000, tol=1e-6)
    given = model.fit(scaler.transform(train.features), train.labels).predict(scaler.transform(test.features))
    labels = np.asarray(test.labels)
    assert found.score.value == pytest.approx((given == labels).mean(), abs=0.01)  # it is stopped sooner
    assert found.second.value == pytest.approx(balanced_accuracy_score(labels, given), abs=0.02)
    assert found.baseline == pytest.approx((labels == "a").mean())
    assert found.score.low is not None
    assert found.score.high is not None
    assert found.score.low < found.score.value < found.score.high
    assert (found.train, found.note) == (300, "")


def test_selectivity_is_high_where_the_class_is_linear_and_low_where_the_types_are() -> None:
    train, test = _phones(2000, 0), _phones(1000, 1)
    told = probe_classes(train, test)
    assert told.control is not None
    assert told.selectivity is not None
    assert told.score.value > 0.95
    assert told.selectivity.value == pytest.approx(told.score.value - told.control.value)
    assert told.selectivity.value > 0.3
    # One dimension for each word: a linear probe can memorise any answer.
    learned, asked = (
        Samples(np.eye(40, dtype=np.float32)[np.asarray(s.types)], s.labels, s.groups, s.types) for s in (train, test)
    )
    memorised = probe_classes(learned, asked)
    assert memorised.selectivity is not None
    assert memorised.score.value == 1
    assert abs(memorised.selectivity.value) < 0.01


def test_control_answers_belong_to_types_and_are_as_frequent_as_labels() -> None:
    train, test = _phones(4000, 0), _phones(100, 1)
    first, second = control_answers(train, test, seed=3)
    by_type = dict(zip(np.asarray(train.types).tolist(), first.tolist(), strict=True))
    assert [by_type[t] for t in np.asarray(test.types).tolist()] == second.tolist()
    alone, _ = control_answers(Samples(train.features, train.labels), Samples(test.features, test.labels), seed=3)
    assert (alone == "a").mean() == pytest.approx(0.4, abs=0.03)


def test_noise_tells_nothing() -> None:
    generator = np.random.default_rng(0)
    noise = [Samples(generator.normal(size=(1500, 10)), generator.integers(2, size=1500)) for _ in range(2)]
    assert probe_classes(noise[0], noise[1]).score.value == pytest.approx(0.5, abs=0.05)
    values = [Samples(s.features, generator.normal(size=1500)) for s in noise]
    assert probe_value(values[0], values[1]).score.value == pytest.approx(0, abs=0.02)


def test_a_number_is_told_as_ridge_regression_by_hand_tells_it() -> None:
    generator = np.random.default_rng(0)
    weights = generator.normal(size=6)
    sets = []
    for n in (400, 200):
        x = generator.normal(size=(n, 6))
        sets.append(Samples(x, x @ weights + generator.normal(size=n), groups=np.arange(n) // 10))
    found = probe_value(sets[0], sets[1], ONE)
    scaler = StandardScaler().fit(sets[0].features)
    model = Ridge(alpha=0.4).fit(scaler.transform(sets[0].features), sets[0].labels)
    expected = r2_score(sets[1].labels, model.predict(scaler.transform(sets[1].features)))
    assert found.score.value == pytest.approx(expected, abs=1e-5)
    assert (found.score.n, found.score.unit) == (200, "samples")
    assert found.selectivity is not None
    assert found.selectivity.value == pytest.approx(expected, abs=0.05)  # each sample is a type: nothing to memorise


def test_the_vote_of_neighbours_equals_a_slow_loop() -> None:
    train, test = _phones(120, 0, noise=4), _phones(60, 1, noise=4)
    unit = [np.asarray(s.features) / np.linalg.norm(s.features, axis=1, keepdims=True) for s in (train, test)]
    right = 0
    for row, label in zip(unit[1], np.asarray(test.labels), strict=True):
        nearest = np.argsort(-(unit[0] @ row))[:3]
        names, counts = np.unique(np.asarray(train.labels)[nearest], return_counts=True)
        right += names[counts.argmax()] == label
    assert probe_neighbours(train, test, k=3).value == pytest.approx(right / 60)


def test_groups_are_never_in_training_and_test() -> None:
    groups = np.random.default_rng(0).integers(9, size=200)
    train, test = split_groups(groups)
    assert set(groups[train]).isdisjoint(groups[test])
    assert len(train) + len(test) == 200
    with pytest.raises(SpeechsslError, match="one only"):
        split_groups(["anna", "anna"])


def test_what_is_doubtful_is_noted_and_what_can_not_be_told_refused() -> None:
    train, test = _phones(60, 0), _phones(60, 1)
    with pytest.raises(SpeechsslError, match="all 60 training samples are 'x'"):
        probe_classes(Samples(train.features, ["x"] * 60), test)
    with pytest.raises(SpeechsslError, match=r"number to tell is 1\.0 in all training"):
        probe_value(Samples(train.features, [1.0] * 60), Samples(test.features, list(range(60))))
    with pytest.raises(SpeechsslError, match="labels for its 60 rows, but has 59"):
        probe_classes(Samples(train.features, np.asarray(train.labels)[1:]), test)
    flat = probe_classes(Samples(np.ones((60, 8)), train.labels), test)
    assert "collapsed" in flat.note
    assert flat.score.value == flat.baseline
    assert "never right" in probe_classes(train, Samples(test.features, ["new"] + ["a"] * 59)).note
    wide = np.tile(np.asarray(train.features), (1, 10)), np.tile(np.asarray(test.features), (1, 10))
    assert (
        "60 training samples in 80" in probe_classes(Samples(wide[0], train.labels), Samples(wide[1], test.labels)).note
    )
