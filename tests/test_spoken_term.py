"""Spoken term detection metrics against slow loops written from their definitions, and the files of an evaluation."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from speechssl.errors import ConfigError, ManifestError, SpeechsslError
from speechssl.metric.spoken_term import (
    QUESST2014,
    OperatingPoint,
    max_term_weighted_value,
    min_normalised_cross_entropy,
    normalised_cross_entropy,
    seen_queries,
    spoken_term_metrics,
    standardise_scores,
    term_weighted_value,
    upper_bound_term_weighted_value,
)
from speechssl.metric.spoken_term_files import (
    DEFAULT_SCORE,
    GroundTruth,
    read_ground_truth,
    read_scores,
    write_ground_truth,
    write_scores,
)

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]
MILD = OperatingPoint(p_target=0.2, cost_miss=2.0)  # beta 2: with QUESST's 12.5 small sets mostly accept nothing


def trials(seed: int, queries: int, documents: int, *, share: float = 0.2, gap: float = 1.0) -> tuple[Floats, Booleans]:
    rng = np.random.default_rng(seed)
    truth = rng.random((queries, documents)) < share
    scores: Floats = rng.normal(size=truth.shape) + gap * truth.astype(np.float64)
    return scores.round(1), truth  # rounded: many ties


def slow_value(accepted: Booleans, truth: Booleans, point: OperatingPoint) -> float:
    """The definition, one trial at a time."""
    lost = []
    for said, there in zip(accepted.tolist(), truth.tolist(), strict=True):
        if not any(there):
            continue
        misses = sum(t and not s for s, t in zip(said, there, strict=True))
        alarms = sum(s and not t for s, t in zip(said, there, strict=True))
        absent = len(there) - sum(there)
        lost.append(misses / sum(there) + point.beta * (alarms / absent if absent else 0.0))
    return 1.0 - float(sum(lost)) / len(lost)


def slow_cross_entropy(scores: Floats, truth: Booleans, prior: float) -> float:
    bits: dict[bool, list[float]] = {True: [], False: []}
    for said, there in zip(scores.tolist(), truth.tolist(), strict=True):
        for score, target in zip(said, there, strict=True):
            if any(there):
                odds = math.exp(score) * prior / (1 - prior)
                bits[target].append(-math.log2(odds / (1 + odds) if target else 1 / (1 + odds)))
    total = prior * np.mean(bits[True]) + (1 - prior) * (np.mean(bits[False]) if bits[False] else 0.0)
    return float(total / -(prior * math.log2(prior) + (1 - prior) * math.log2(1 - prior)))


def test_the_operating_point_is_that_of_the_official_script() -> None:
    assert round(QUESST2014.effective_prior, 7) == 0.0741290  # the script's bc cuts it off at 0.0741289
    assert pytest.approx(12.49, abs=1e-12) == QUESST2014.beta


def test_a_case_worked_by_hand() -> None:
    truth = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=bool)
    scores = np.array([[0.9, 0.2, 0.8, 0.1], [0.3, 0.7, 0.6, 0.1], [9.0, 9.0, 9.0, 9.0]])
    # Threshold 0.7: query 1 hits 1 of 2 with 1 of 2 false alarms, query 2 hits 1 of 1 with none; query 3 is left out.
    assert term_weighted_value(scores >= 0.7, truth, point=MILD) == pytest.approx(1 - (0.5 + 2 * 0.5 + 0) / 2)
    # Threshold 0.9 misses query 2 and half of query 1: 1 - (0.5 + 1) / 2; 0.7 gives the same, so the higher one counts.
    assert max_term_weighted_value(scores, truth, point=MILD) == pytest.approx((0.25, 0.9))
    # Each by itself: 0.5 at 0.9 for query 1, and 1 at 0.7 for query 2.
    assert upper_bound_term_weighted_value(scores, truth, point=MILD) == pytest.approx(0.75)
    assert seen_queries(truth) == 2


def test_accepting_nothing_is_worth_zero_and_everything_one_minus_beta() -> None:
    scores, truth = trials(0, 6, 30)
    assert term_weighted_value(np.zeros_like(truth), truth) == 0.0
    assert term_weighted_value(np.ones_like(truth), truth) == pytest.approx(1 - QUESST2014.beta)
    assert max_term_weighted_value(-10 * scores * truth, truth)[0] >= 0.0
    assert max_term_weighted_value(np.where(truth, -1.0, 1.0), truth) == (0.0, math.inf)


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(2, 9))
@settings(deadline=None, max_examples=60)
def test_maximum_actual_and_upper_bound_are_those_of_the_slow_loop(seed: int, queries: int, documents: int) -> None:
    scores, truth = trials(seed, queries, documents, share=0.4)
    truth[0, 0] = True
    cuts = [math.inf, *np.unique(scores)]
    slow = [slow_value(scores >= cut, truth, MILD) for cut in cuts]
    value, threshold = max_term_weighted_value(scores, truth, point=MILD)
    assert value == pytest.approx(max(slow), abs=1e-12)
    assert slow_value(scores >= threshold, truth, MILD) == pytest.approx(value, abs=1e-12)
    decisions = scores > 0.5
    assert term_weighted_value(decisions, truth, point=MILD) == pytest.approx(
        slow_value(decisions, truth, MILD), abs=1e-12
    )
    own = [
        max(slow_value(s[None] >= cut, t[None], MILD) for cut in cuts)
        for s, t in zip(scores, truth, strict=True)
        if t.any()
    ]
    assert upper_bound_term_weighted_value(scores, truth, point=MILD) == pytest.approx(np.mean(own), abs=1e-12)


@given(st.integers(0, 10_000), st.floats(0.01, 0.9))
@settings(deadline=None, max_examples=40)
def test_cross_entropy_is_that_of_the_slow_loop(seed: int, p_target: float) -> None:
    scores, truth = trials(seed, 4, 8)
    truth[1, 2] = True
    point = OperatingPoint(p_target, cost_miss=3.0)
    expected = slow_cross_entropy(scores, truth, point.effective_prior)
    assert normalised_cross_entropy(scores, truth, point=point) == pytest.approx(expected, abs=1e-12)


def test_scores_that_say_nothing_have_cross_entropy_one_and_certain_ones_zero() -> None:
    _, truth = trials(1, 5, 40)
    assert normalised_cross_entropy(np.zeros(truth.shape), truth) == pytest.approx(1.0, abs=1e-12)
    assert normalised_cross_entropy(np.where(truth, 80.0, -80.0), truth) == pytest.approx(0.0, abs=1e-12)


def test_the_least_cross_entropies_are_those_of_scikit_learns_calibrations() -> None:
    scores, truth = trials(2, 20, 100)
    assert truth.any(axis=1).all()
    prior = QUESST2014.effective_prior
    s, y = scores.ravel(), truth.ravel()
    weights = np.where(y, prior / y.sum(), (1 - prior) / (~y).sum()) * y.size
    logistic = LogisticRegression(C=1e12, tol=1e-12, max_iter=10_000).fit(s[:, None], y, sample_weight=weights)
    isotonic = IsotonicRegression().fit(s, y, sample_weight=weights).predict(s)
    for calibration, posterior in (("affine", logistic.predict_proba(s[:, None])[:, 1]), ("isotonic", isotonic)):
        chosen = np.where(y, posterior, 1 - posterior)
        expected = -(weights * np.log2(chosen)).mean() / -(prior * np.log2(prior) + (1 - prior) * np.log2(1 - prior))
        found = min_normalised_cross_entropy(scores, truth, calibration=calibration)  # type: ignore[arg-type]  # of the two
        assert found == pytest.approx(expected, abs=1e-8)


def test_affine_calibration_is_the_least_over_scale_and_offset() -> None:
    scores, truth = trials(3, 8, 60)
    found = minimize(
        lambda x: normalised_cross_entropy(x[0] * scores + x[1], truth),
        [1.0, 0.0],
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-13},
    )
    assert min_normalised_cross_entropy(scores, truth, calibration="affine") == pytest.approx(found.fun, abs=1e-8)


def test_calibrations_are_ordered_bounded_and_blind_to_what_they_undo() -> None:
    scores, truth = trials(4, 12, 80)
    affine = min_normalised_cross_entropy(scores, truth, calibration="affine")
    isotonic = min_normalised_cross_entropy(scores, truth, calibration="isotonic")
    assert isotonic < affine < min(1.0, normalised_cross_entropy(scores, truth))
    moved = 1e-6 * scores + 5.0
    assert min_normalised_cross_entropy(moved, truth, calibration="affine") == pytest.approx(affine, abs=1e-7)
    assert min_normalised_cross_entropy(np.exp(scores), truth, calibration="isotonic") == pytest.approx(
        isotonic, abs=1e-12
    )
    for calibration in ("affine", "isotonic"):
        turned = min_normalised_cross_entropy(-scores, truth, calibration=calibration)  # type: ignore[arg-type]  # of the two
        assert turned == pytest.approx(1.0, abs=0.02) and turned <= 1.0
        apart = min_normalised_cross_entropy(np.where(truth, 1.0, 0.0), truth, calibration=calibration)  # type: ignore[arg-type]  # of the two
        assert apart == 0.0


def test_unreported_languages_dilute_the_value_as_in_superb() -> None:
    scores, truth = trials(5, 10, 50, gap=3.0)
    truth[:, 0] = True
    everywhere = np.full((40, 120), DEFAULT_SCORE)
    everywhere[:10, :50] = standardise_scores(scores)
    labels = np.zeros((40, 120), dtype=bool)
    labels[:10, :50] = truth
    labels[10:, 60] = True  # 30 queries of other languages, all of which the system missed
    value, threshold = max_term_weighted_value(everywhere, labels, point=MILD)
    alone = [slow_value((everywhere >= threshold)[:10], labels[:10], MILD)]
    assert 0 < value == pytest.approx(alone[0] * 10 / 40, abs=1e-12)


def test_standardised_scores_have_mean_zero_and_deviation_one_and_equal_ones_are_zero() -> None:
    scores = np.array([[1.0, 2.0, 4.0, 9.0], [0.1, 0.1, 0.1, 0.1]])
    found = standardise_scores(scores)
    np.testing.assert_allclose(found[0], (scores[0] - scores[0].mean()) / scores[0].std(), rtol=0, atol=1e-12)
    assert (found[1] == 0).all()


def test_intervals_cover_their_values_and_repeat_with_their_seed() -> None:
    scores, truth = trials(6, 40, 60, gap=2.5)
    decisions = scores > 2.0
    metrics = spoken_term_metrics(scores, truth, decisions, point=MILD, seed=1)
    assert metrics == spoken_term_metrics(scores, truth, decisions, point=MILD, seed=1)
    assert metrics != spoken_term_metrics(scores, truth, decisions, point=MILD, seed=2)
    assert metrics["atwv"].value <= metrics["mtwv"].value <= metrics["upper_bound_twv"].value
    for name in ("mtwv", "atwv", "upper_bound_twv", "cnxe"):
        low, high = metrics[name].low, metrics[name].high
        assert low is not None and high is not None
        assert low < metrics[name].value < high, name
    assert (metrics["mtwv"].n, metrics["mtwv"].unit) == (40, "queries")
    assert "atwv" not in spoken_term_metrics(scores, truth, point=MILD)


def test_a_query_drawn_twice_counts_twice() -> None:
    from speechssl.metric.spoken_term import _cross_entropies, _sweep

    scores, truth = trials(7, 5, 30)
    truth[:, 0] = True
    counts = np.array([[2.0, 0.0, 1.0, 1.0, 1.0]])
    rows = [0, 0, 2, 3, 4]
    again, _ = _sweep(scores, truth, counts, MILD.beta)
    assert again[0] == pytest.approx(max_term_weighted_value(scores[rows], truth[rows], point=MILD)[0], abs=1e-12)
    entropy = _cross_entropies(scores, truth, counts, MILD.effective_prior)
    assert entropy[0] == pytest.approx(normalised_cross_entropy(scores[rows], truth[rows], point=MILD), abs=1e-12)


def test_a_million_trials_take_seconds() -> None:
    scores, truth = trials(8, 100, 10_000, share=0.002)
    truth[:, 0] = True
    begin = time.perf_counter()
    value, _ = max_term_weighted_value(scores, truth)
    assert time.perf_counter() - begin < 5.0  # about 0.3 s; the bound only catches a loop over thresholds and trials
    assert value >= 0


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"scores\[1, 2\] = nan", lambda s, t: max_term_weighted_value(np.where(s == s[1, 2], math.nan, s), t)),
        ("one shape", lambda s, t: normalised_cross_entropy(s[:2], t)),
        ("No query occurs", lambda s, t: term_weighted_value(t, np.zeros_like(t))),
        ("calibration", lambda s, t: min_normalised_cross_entropy(s, t, calibration=str(s))),  # type: ignore[arg-type]
        ("p_target", lambda s, t: OperatingPoint(p_target=1.0)),
        ("costs", lambda s, t: OperatingPoint(cost_miss=0.0)),
    ],
)
def test_bad_arrays_are_refused(message: str, call: Callable[[Floats, Booleans], object]) -> None:
    scores = np.arange(12.0).reshape(3, 4)
    with pytest.raises((SpeechsslError, ConfigError), match=message):
        call(scores, np.eye(3, 4, dtype=bool))


TRUTH = GroundTruth(("q<1>", "q&2"), ("d1", "d2", "d3"), np.array([[1, 0, 1], [0, 0, 0]], dtype=bool), (1.5, 2.0, 0.5))


def test_ground_truth_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_ground_truth(tmp_path, TRUTH, name="small")
    found = read_ground_truth(tmp_path)
    assert (found.queries, found.documents, found.seconds, found.ignored) == (
        TRUTH.queries,
        TRUTH.documents,
        TRUTH.seconds,
        0,
    )
    np.testing.assert_array_equal(found.occurs, TRUTH.occurs)


def test_scores_come_back_as_they_were_written(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).normal(size=(2, 3))
    path = tmp_path / "system.stdlist.xml"
    write_scores(path, TRUTH.queries, TRUTH.documents, scores, scores > 0, decimals=6)
    found = read_scores(path, TRUTH.queries, TRUTH.documents)
    np.testing.assert_allclose(found.scores, scores, rtol=0, atol=5e-7)
    np.testing.assert_array_equal(found.decisions, scores > 0)
    assert (found.given, found.ignored) == (6, 0)


OFFICIAL = """<?xml version='1.0' encoding='UTF-8'?>
<stdlist termlist_filename="benchmark.stdlist.xml" indexing_time="1.00" language="english" index_size="1" system_id="b">
  <detected_termlist termid="quesst14_dev_0001" term_search_time="1.0" oov_term_count="1">
    <term file="quesst14_00002" channel="1" tbeg="0.000" dur="0.00" score="2.1250" decision="YES"/>
    <term file="quesst14_00001" channel="1" tbeg="0.000" dur="0.00" score="-0.5000" decision="NO"/>
  </detected_termlist>
  <detected_termlist termid="quesst14_dev_0009" term_search_time="1.0" oov_term_count="1">
    <term file="quesst14_00002" channel="1" tbeg="0.000" dur="0.00" score="1.0" decision="NO"/>
  </detected_termlist>
</stdlist>
"""
QUERIES, DOCUMENTS = ("quesst14_dev_0001", "quesst14_dev_0002"), ("quesst14_00001", "quesst14_00002")


def test_an_incomplete_file_as_s3prl_writes_it_is_filled_with_the_default_score(tmp_path: Path) -> None:
    path = tmp_path / "benchmark.stdlist.xml"
    path.write_bytes(b"\xef\xbb\xbf" + OFFICIAL.replace("\n", "\r\n").encode())
    found = read_scores(path, QUERIES, DOCUMENTS, default_score=DEFAULT_SCORE)
    assert found.scores.tolist() == [[-0.5, 2.125], [-10.0, -10.0]]
    assert found.decisions.tolist() == [[False, True], [False, False]]
    assert (found.given, found.ignored) == (2, 1)
    with pytest.raises(ManifestError, match=r"no score for query 'quesst14_dev_0002'.*2 of 4 trials"):
        read_scores(path, QUERIES, DOCUMENTS)


def test_the_later_name_of_the_format_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "system.kwslist.xml"
    path.write_text(
        '<kwslist><detected_kwlist kwid="a" search_time="1"><kw file="d.wav" score="3" decision="YES"/>'
        "</detected_kwlist></kwslist>"
    )
    assert read_scores(path, ["a"], ["d"]).scores.tolist() == [[3.0]]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('score="2.1250"', 'score="high"', "line 4: the score 'high'"),
        ('score="-0.5000"', 'score="nan"', "line 5: the score 'nan'"),
        ('decision="YES"', 'decision="yes"', "line 4: the decision"),
        ('file="quesst14_00001"', 'file="quesst14_00003"', "line 5: the document 'quesst14_00003'"),
        ('file="quesst14_00001"', 'file="quesst14_00002"', "line 5: .* second score"),
        (' termid="quesst14_dev_0001"', "", "line 3: <detected_termlist> has no attribute 'termid'"),
        ("</stdlist>", "", "line 11: not well-formed"),
        ("<stdlist", '<!DOCTYPE x [<!ENTITY e "e">]><stdlist', "line 2: a document type"),
        ("detected_termlist", "unknown_list", "line 4: a <term> stands outside"),
    ],
)
def test_damaged_scores_are_refused_by_file_and_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "benchmark.stdlist.xml"
    path.write_text(OFFICIAL.replace(old, new))
    with pytest.raises(ManifestError, match=rf"benchmark\.stdlist\.xml, {message}"):
        read_scores(path, QUERIES, DOCUMENTS, default_score=-10.0)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("small.rttm", "LEXEME d1 1 0 1 q<1>\n", r"small\.rttm, line 1: .* 9 fields, but this one has 6"),
        ("small.rttm", "\nLEXEME d9 1 0 1 q&2 lex <NA> <NA>\n", r"small\.rttm, line 2: the document 'd9'"),
        ("small.rttm", b"LEXEME \xff", "not UTF-8"),
        ("small.ecf.xml", '<ecf><excerpt audio_filename="a" dur="x"/></ecf>', r"ecf\.xml, line 1: the duration 'x'"),
        ("small.ecf.xml", '<ecf>\n<excerpt dur="1"/></ecf>', "line 2: <excerpt> has no attribute 'audio_filename'"),
        ("small.ecf.xml", "<ecf/>", "names no document"),
        ("small.tlist.xml", '<t><term termid="a"/>\n<term termid="a"/></t>', "line 2: the query 'a' .* in line 1"),
        ("small.tlist.xml", "<t/>", "names no query"),
        ("other.tlist.xml", "<t/>", r"one \*\.tlist\.xml, but holds 2"),
    ],
)
def test_damaged_ground_truth_is_refused(tmp_path: Path, file: str, text: str | bytes, message: str) -> None:
    write_ground_truth(tmp_path, TRUTH, name="small")
    (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ManifestError, match=message):
        read_ground_truth(tmp_path)


def test_occurrences_of_other_terms_are_counted_and_speaker_lines_passed_over(tmp_path: Path) -> None:
    write_ground_truth(tmp_path, TRUTH, name="small")
    lines = (
        "SPEAKER d1 1 0 9 <NA> <NA> SELF <NA>",
        "LEXEME Audio/d1.wav 1 0 1 q<1> lex SELF <NA>",
        "LEXEME d1 1 0 1 q3 lex SELF <NA>",
    )
    (tmp_path / "small.rttm").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    found = read_ground_truth(tmp_path)
    assert (found.occurs.tolist(), found.ignored) == ([[True, False, False], [False, False, False]], 1)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpeechsslError, match="shape"):
        write_scores(tmp_path / "x.xml", ["a"], ["d"], np.zeros((1, 2)), np.zeros((1, 2)))
    with pytest.raises(SpeechsslError, match="finite"):
        write_scores(tmp_path / "x.xml", ["a"], ["d"], [[math.nan]], [[False]])
    with pytest.raises(ManifestError, match="no file"):
        read_scores(tmp_path / "none.xml", ["a"], ["d"])
    assert not list(tmp_path.iterdir())
