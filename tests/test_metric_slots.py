"""Slot filling metrics against a slow parser without patterns, plain edit distances, and cases worked by hand."""

from collections.abc import Sequence

import numpy as np
import pytest

from speechssl.errors import SpeechsslError
from speechssl.metric.slots import (
    Slot,
    find_slots,
    remove_tags,
    slot_edit_f1,
    slot_type_f1,
    slot_value_cer,
    slot_value_wer,
)

Pairs = list[tuple[str, str]]
PIECES = ["B-a ", "B-ab ", "B-b ", " E-a", " E-ab", " E-b", "x", "yz", " ", "  ", "B-", "E-a", "a: b;"]


def single_blanks(text: str) -> str:
    while "  " in text:
        text = text.replace("  ", " ")
    return text


def slow_slots(text: str) -> Pairs:
    """Names and values by scanning: the first end tag that begins with the name closes the slot."""
    text, found, at = single_blanks(text), [], 0
    while (begin := text.find("B-", at)) >= 0:
        end_of_name = begin + 2
        while end_of_name < len(text) and text[end_of_name] != " ":
            end_of_name += 1
        name = text[begin + 2 : end_of_name]
        close = text.find(f" E-{name}", end_of_name + 2)  # a value has at least one character
        if name and end_of_name < len(text) and close >= 0:
            found.append((name, text[end_of_name + 1 : close]))
            at = close + len(f" E-{name}")
        else:
            at = begin + 1
    return found


def slow_clean(text: str) -> str:
    """Drops 'B-<name> ' and then ' E-<name>', wherever they stand."""
    for tag, blank_first in (("B-", False), (" E-", True)):
        at = 0
        while (begin := text.find(tag, at)) >= 0:
            end = begin + len(tag)
            while end < len(text) and text[end] != " ":
                end += 1
            named = end > begin + len(tag)
            if named and (blank_first or end < len(text)):
                text = text[:begin] + text[end + (not blank_first) :]
                at = begin
            else:
                at = begin + 1
    return text


def distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Edit distance by the table of Wagner and Fischer."""
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i, j in np.ndindex(len(a), len(b)):
        best = min(table[i, j + 1], table[i + 1, j]) + 1
        table[i + 1, j + 1] = min(best, table[i, j] + (a[i] != b[j]))
    return int(table[-1, -1])


def random_texts(seed: int, count: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(PIECES, rng.integers(0, 14))) for _ in range(count)]


def random_tagged(seed: int, count: int) -> list[str]:
    """Well-formed texts of two to four parts."""
    rng = np.random.default_rng(seed)

    def part() -> str:
        words = " ".join(rng.choice(["to", "two", "toe", "ow"], rng.integers(1, 4)))
        name = rng.choice(["p", "q", "r", ""])
        return f"B-{name} {words} E-{name}" if name else words

    return [" ".join(part() for _ in range(rng.integers(1, 5))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_slots_and_words_are_found_as_by_scanning(seed: int) -> None:
    for text in random_texts(seed, 60):
        assert [(s.name, s.value) for s in find_slots(text)] == slow_slots(text)
        assert remove_tags(text) == slow_clean(single_blanks(text))


def test_slots_worked_by_hand() -> None:
    text = "add B-artist nick  drake E-artist to B-list my songs E-list"
    assert find_slots(text) == [Slot("artist", "nick drake"), Slot("list", "my songs")]
    assert remove_tags(text) == "add nick drake to my songs"
    assert find_slots("addB-a x E-ato") == [Slot("a", "x")]  # what S3PRL's decoder may write
    assert find_slots("play B-a x") == find_slots("B-a E-a") == find_slots("") == []
    assert find_slots("B-a E-a y E-a") == [Slot("a", "E-a y")]
    assert find_slots("B-a x B-b y E-b E-a") == [Slot("a", "x B-b y E-b")]
    assert find_slots("B-a x E-b B-b y E-b") == [Slot("b", "y")]


def slow_dictionary(pairs: Pairs) -> dict[str, list[str]]:
    return {name: [v for n, v in pairs if n == name] for name in dict(pairs)}


def slow_scores(references: list[str], hypotheses: list[str]) -> dict[str, float]:
    """All scores in one loop over utterances and slots."""
    f1, sums = [], dict.fromkeys(("c", "C", "w", "W", "tp", "fn", "fp", "extra"), 0)
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        wanted = slow_dictionary(slow_slots(reference))
        given = slow_dictionary([(n, slow_clean(v)) for n, v in slow_slots(hypothesis)])
        common = set(wanted) & set(given)
        if not wanted and not given:
            f1.append(1.0)
        elif not common:
            f1.append(0.0)
        else:
            precision, recall = len(common) / len(given), len(common) / len(wanted)
            f1.append(2 * precision * recall / (precision + recall))
        for name, values in wanted.items():
            for value in values:
                candidates = given.get(name, [""])
                sums["c"] += min(distance(value, other) for other in candidates)
                sums["C"] += len(value)
                sums["w"] += min(distance(value.split(), other.split()) for other in candidates)
                sums["W"] += len(value.split())
                sums["tp"] += value in candidates
                sums["fn"] += value not in candidates
                sums["fp"] += name in given and value not in candidates
        sums["extra"] += sum(len(given[name]) for name in given if name not in wanted)
    twice = 2 * sums["tp"]
    return {
        "type f1": sum(f1) / len(f1),
        "cer": sums["c"] / sums["C"],
        "wer": sums["w"] / sums["W"],
        "part": twice / (twice + sums["fn"] + sums["fp"]),
        "full": twice / (twice + sums["fn"] + sums["fp"] + sums["extra"]),
    }


@pytest.mark.parametrize("seed", range(8))
def test_scores_are_those_of_one_slow_loop(seed: int) -> None:
    references, hypotheses = random_tagged(seed, 40), random_tagged(100 + seed, 20) + random_texts(seed, 20)
    expected = slow_scores(references, hypotheses)
    assert slot_type_f1(references, hypotheses).value == pytest.approx(expected["type f1"], abs=1e-12)
    assert slot_value_cer(references, hypotheses).value == pytest.approx(expected["cer"], abs=1e-12)
    assert slot_value_wer(references, hypotheses).value == pytest.approx(expected["wer"], abs=1e-12)
    assert slot_edit_f1(references, hypotheses, count_extra=False).value == pytest.approx(expected["part"], abs=1e-12)
    assert slot_edit_f1(references, hypotheses, count_extra=True).value == pytest.approx(expected["full"], abs=1e-12)


def test_scores_worked_by_hand() -> None:
    references = ["B-a one E-a B-b two E-b", "B-a four E-a", "plain"]
    hypotheses = ["B-a ones E-a B-c two E-c", "B-a for E-a B-a four E-a", "plain"]
    # Names: {a, b} against {a, c} is 1/2, the others are right.
    found = slot_type_f1(references, hypotheses)
    assert found.value == pytest.approx(2.5 / 3, abs=1e-12)
    assert (found.n, found.unit) == (3, "utterances")
    # one/ones: 1 of 3; two/nothing: 3 of 3; four/four: 0 of 4.
    rate = slot_value_cer(references, hypotheses)
    assert rate.value == pytest.approx(4 / 10, abs=1e-12)
    assert (rate.n, rate.unit) == (10, "characters")
    assert slot_value_wer(references, hypotheses).value == pytest.approx(2 / 3, abs=1e-12)
    # One hit; one and two missed; ones a false alarm, and c only where extra names count.
    assert slot_edit_f1(references, hypotheses, count_extra=False).value == pytest.approx(2 / 5, abs=1e-12)
    assert slot_edit_f1(references, hypotheses, count_extra=True).value == pytest.approx(2 / 6, abs=1e-12)


def test_the_truth_is_perfect_and_silence_has_every_error() -> None:
    references = random_tagged(3, 30)
    assert slot_type_f1(references, references).value == 1.0
    assert slot_value_cer(references, references).value == slot_value_wer(references, references).value == 0.0
    assert slot_edit_f1(references, references, count_extra=True).value == 1.0
    empty = [""] * 30
    assert slot_value_cer(references, empty).value == slot_value_wer(references, empty).value == 1.0
    assert slot_edit_f1(references, empty, count_extra=True).value == 0.0
    slots = [bool(slow_slots(r)) for r in references]
    assert slot_type_f1(references, empty).value == pytest.approx(slots.count(False) / 30, abs=1e-12)


def test_a_value_inside_of_another_loses_its_tags() -> None:
    assert slot_value_cer(["B-a x y E-a"], ["B-a x B-b y E-b E-a"]).value == 0.0


def test_a_value_a_hundred_times_too_long_counts_as_an_empty_one() -> None:
    assert slot_value_cer(["B-a x E-a"], [f"B-a {'y' * 99} E-a"]).value == 99.0
    assert slot_value_cer(["B-a x E-a"], [f"B-a {'y' * 100} E-a"]).value == 1.0


def test_values_with_the_marks_that_s3prl_joins_by_are_kept_whole() -> None:
    text = "at B-time 6:30; sharp E-time"
    assert find_slots(text) == [Slot("time", "6:30; sharp")]
    assert slot_value_cer([text], [text]).value == 0.0


def test_intervals_are_over_utterances() -> None:
    references = ["B-a xxxx E-a", "B-a yyyy E-a"]
    found = slot_value_cer(references, ["B-a xxxx E-a", ""])
    assert (found.low, found.value, found.high) == (0.0, 0.5, 1.0)


def test_texts_without_slots_are_refused_where_the_score_is_undefined() -> None:
    with pytest.raises(SpeechsslError, match="No reference has a slot"):
        slot_value_cer(["plain", "B-a open"], ["B-a x E-a", ""])
    with pytest.raises(SpeechsslError, match="no slots to count"):
        slot_edit_f1(["plain"], ["B-a x E-a"], count_extra=False)
    assert slot_edit_f1(["plain"], ["B-a x E-a"], count_extra=True).value == 0.0
    with pytest.raises(SpeechsslError, match="there are 0 and 1"):
        slot_type_f1(["plain"], [])
    with pytest.raises(SpeechsslError, match="no references"):
        slot_type_f1([], [])
