"""Classification metrics against scikit-learn and plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, recall_score

from speechssl.errors import SpeechsslError
from speechssl.metric.classification import (
    accuracy,
    accuracy_by_field,
    all_fields_accuracy,
    confusion_counts,
    macro_f1,
    recalls_by_class,
    unweighted_average_recall,
)

pairs = st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from("abcdf")), min_size=1, max_size=40)


# scikit-learn warns of classes that only the hypotheses have, and where there is only one.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:sklearn")


def balanced(references: list[str], hypotheses: list[str]) -> float:
    return float(balanced_accuracy_score(references, hypotheses))


def macro(references: list[str], hypotheses: list[str]) -> float:
    return float(f1_score(references, hypotheses, average="macro", zero_division=0))


@given(pairs)
@settings(deadline=None, max_examples=60)
def test_scores_are_those_of_scikit_learn(rows: list[tuple[str, str]]) -> None:
    references, hypotheses = [r for r, _ in rows], [h for _, h in rows]
    assert accuracy(references, hypotheses).value == pytest.approx(accuracy_score(references, hypotheses), abs=1e-12)
    found = unweighted_average_recall(references, hypotheses).value
    assert found == pytest.approx(balanced(references, hypotheses), abs=1e-12)
    assert macro_f1(references, hypotheses).value == pytest.approx(macro(references, hypotheses), abs=1e-12)
    counts = confusion_counts(references, hypotheses)
    np.testing.assert_array_equal(counts.counts, confusion_matrix(references, hypotheses, labels=counts.classes))
    for name, recall in recalls_by_class(references, hypotheses).items():
        expected = recall_score(references, hypotheses, labels=[name], average=None)[0]
        assert recall.value == pytest.approx(expected, abs=1e-12)
        assert recall.n == references.count(name)


def test_integers_are_classes_too_and_sort_as_numbers() -> None:
    counts = confusion_counts([10, 9, 10], [9, 9, 10])
    assert counts.classes == (9, 10)
    np.testing.assert_array_equal(counts.counts, [[1, 0], [1, 1]])


def test_classes_absent_from_one_side_count_as_documented() -> None:
    references, hypotheses = ["a", "a", "b"], ["a", "c", "c"]  # b is never predicted, c never right
    assert unweighted_average_recall(references, hypotheses).value == pytest.approx(0.25, abs=1e-12)  # a: 1/2, b: 0
    assert macro_f1(references, hypotheses).value == pytest.approx((2 / 3) / 3, abs=1e-12)
    assert list(recalls_by_class(references, hypotheses)) == ["a", "b"]


@pytest.mark.parametrize("metric", [unweighted_average_recall, macro_f1])
def test_intervals_are_quantiles_of_scikit_learn_on_the_same_replicates(metric) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    references = rng.choice(list("aaabbc"), 25).tolist()
    hypotheses = [r if rng.random() < 0.6 else str(rng.choice(list("abcd"))) for r in references]
    groups = [f"speaker {i % 9}" for i in range(25)]
    reference = balanced if metric is unweighted_average_recall else macro
    rows_of = [np.flatnonzero(np.array(groups) == g) for g in sorted(set(groups))]
    values = []
    for counts in np.random.default_rng(7).multinomial(9, np.full(9, 1 / 9), size=1000):
        rows = [i for unit, times in enumerate(counts) for _ in range(times) for i in rows_of[unit]]
        values.append(reference([references[i] for i in rows], [hypotheses[i] for i in rows]))
    found = metric(references, hypotheses, groups=groups, seed=7)
    assert found.low == pytest.approx(np.quantile(values, 0.025), abs=1e-12)
    assert found.high == pytest.approx(np.quantile(values, 0.975), abs=1e-12)
    assert found.low < found.value < found.high


def test_groups_that_fail_together_widen_the_interval_of_accuracy() -> None:
    references = ["a"] * 100
    hypotheses = ["a"] * 50 + ["b"] * 50
    groups = [str(i // 10) for i in range(100)]
    single, grouped = accuracy(references, hypotheses), accuracy(references, hypotheses, groups=groups)
    assert single.value == grouped.value == 0.5
    assert grouped.high - grouped.low > 2 * (single.high - single.low)  # type: ignore[operator]


def test_one_wrong_field_makes_an_intent_wrong() -> None:
    wanted = [("on", "light"), ("off", "light"), ("on", "heat")]
    guessed = [("on", "light"), ("on", "light"), ("off", "music")]
    references = [{"action": a, "object": o} for a, o in wanted]
    hypotheses = [{"object": o, "action": a} for a, o in guessed]
    assert all_fields_accuracy(references, hypotheses).value == pytest.approx(1 / 3, abs=1e-12)
    fields = accuracy_by_field(references, hypotheses)
    assert {k: v.value for k, v in fields.items()} == pytest.approx({"action": 1 / 3, "object": 2 / 3}, abs=1e-12)
    assert all(v.n == 3 for v in fields.values())


def test_a_single_utterance_of_a_single_class_has_a_score() -> None:
    assert [m(["a"], ["a"]).value for m in (accuracy, macro_f1, unweighted_average_recall)] == [1.0, 1.0, 1.0]
    assert [m(["a"], ["b"]).value for m in (accuracy, macro_f1, unweighted_average_recall)] == [0.0, 0.0, 0.0]


def test_bad_input_is_refused_with_its_place() -> None:
    with pytest.raises(SpeechsslError, match="as many hypotheses as references, but there are 1 and 2"):
        accuracy(["a", "b"], ["a"])
    with pytest.raises(SpeechsslError, match="no references"):
        macro_f1([], [])
    with pytest.raises(SpeechsslError, match="int, str"):
        unweighted_average_recall(["1", "2"], [1, 2])
    with pytest.raises(SpeechsslError, match="one group per utterance, but there are 1 for 2"):
        accuracy(["a", "b"], ["a", "b"], groups=["x"])
    with pytest.raises(SpeechsslError, match=r"hypotheses\[1\] must have the fields a, but has b"):
        all_fields_accuracy([{"a": "1"}, {"a": "2"}], [{"a": "1"}, {"b": "2"}])
    with pytest.raises(SpeechsslError, match=r"references\[0\] has no field"):
        all_fields_accuracy([{}], [{}])


def test_recalls_are_resampled_by_groups() -> None:
    references, hypotheses = ["a"] * 40 + ["b"] * 2, ["a"] * 20 + ["b"] * 22
    units = [0] * 20 + [1] * 20 + [0, 1]  # one group has all of 'a' right, the other none
    of_items, of_groups = (recalls_by_class(references, hypotheses, groups=g)["a"] for g in (None, units))
    assert of_items.value == of_groups.value == 0.5
    assert (of_groups.low, of_groups.high) == (0.0, 1.0)
    assert of_items.low is not None and of_items.low > 0.3
