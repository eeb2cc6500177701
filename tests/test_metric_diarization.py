"""Diarization metrics against a loop over a fine time grid written from NIST's definition, and cases worked by hand."""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from speechssl.errors import ManifestError, SpeechsslError
from speechssl.metric.diarization import DiarizationErrors, diarization_errors, jaccard_errors
from speechssl.metric.segments import (
    Region,
    Segment,
    read_rttm,
    read_uem,
    segments_from_activity,
    write_rttm,
    write_uem,
)

STEP = 0.01  # seconds; the random times below are multiples of it, so a loop over midpoints is exact


def random_segments(rng: np.random.Generator, recording: str, speakers: int, count: int) -> list[Segment]:
    segments = []
    for _ in range(count):
        start = int(rng.integers(0, 400))
        end = start + int(rng.integers(1, 90))
        segments.append(Segment(recording, start * STEP, end * STEP, f"s{rng.integers(speakers)}"))
    return segments


def active(segments: Sequence[Segment], recording: str, time: float) -> set[str]:
    return {s.speaker for s in segments if s.recording == recording and s.start <= time < s.end}


def slow_turns(segments: Sequence[Segment], recording: str) -> list[tuple[float, float]]:
    """Segments of each speaker without overlap with itself, frame by frame."""
    turns = []
    for speaker in {s.speaker for s in segments if s.recording == recording}:
        own = [
            (round(s.start / STEP), round(s.end / STEP))
            for s in segments
            if (s.recording, s.speaker) == (recording, speaker)
        ]
        frames = sorted({i for a, b in own for i in range(a, b)})
        # A new turn begins where no segment covers both neighbours: segments that touch stay apart.
        begins = [i for i in frames if not any(a < i < b for a, b in own)]
        ends = [i + 1 for i in frames if not any(a < i + 1 < b for a, b in own)]
        turns += [(a * STEP, b * STEP) for a, b in zip(begins, ends, strict=True)]
    return turns


def slow_der(
    references: Sequence[Segment],
    hypotheses: Sequence[Segment],
    collar: float,
    score_overlap: bool,
    regions: Sequence[Region] | None,
) -> dict[str, set[tuple[float, ...]]]:
    """Per recording (speech, missed, false alarm, confusion) of every best mapping, by a loop over time."""
    found = {}
    for name in sorted({s.recording for s in references} if regions is None else {r.recording for r in regions}):
        everything = [s for s in (*references, *hypotheses) if s.recording == name]
        if regions is None:
            spans = [(min(s.start for s in everything), max(s.end for s in everything))]
        else:
            spans = [(r.start, r.end) for r in regions if r.recording == name]
        bounds = {b for turn in slow_turns(references, name) for b in turn}
        frames = []
        for tick in range(600):
            time = (tick + 0.5) * STEP
            if any(a <= time < b for a, b in spans):
                near = any(abs(time - b) < collar for b in bounds)
                frames.append((active(references, name, time), active(hypotheses, name, time), near))
        spoken = sorted(set().union(*(r for r, _, _ in frames)) if frames else set())
        guessed = sorted(set().union(*(h for _, h, _ in frames)) if frames else set())
        best = -1
        results: set[tuple[float, ...]] = set()
        padded = [*guessed, *[None] * len(spoken)]
        for chosen in set(itertools.permutations(padded, len(spoken))):
            mapping = dict(zip(spoken, chosen, strict=True))
            together = sum(mapping[s] in h for r, h, _ in frames for s in r)
            scores = [0.0] * 4
            for r, h, near in frames:
                if near or (not score_overlap and len(r) > 1):
                    continue
                right = sum(mapping[s] in h for s in r)
                parts = len(r), max(len(r) - len(h), 0), max(len(h) - len(r), 0), min(len(r), len(h)) - right
                scores = [total + part * STEP for total, part in zip(scores, parts, strict=True)]
            if together >= best:
                results = {tuple(scores)} | (results if together == best else set())
                best = together
        found[name] = results
    return found


@pytest.mark.parametrize("seed", range(12))
def test_errors_are_those_of_a_loop_over_a_fine_grid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    references = random_segments(rng, "a", 3, 7) + random_segments(rng, "b", 2, 4)
    hypotheses = random_segments(rng, "a", int(rng.integers(1, 4)), 6) + random_segments(rng, "b", 3, 3)
    regions = None
    if seed % 2:
        regions = [Region("a", 0.5, 2.0), Region("a", 2.25, 3.5), Region("b", 0.0, 2.5), Region("b", 2.0, 3.0)]
    for collar, score_overlap in itertools.product((0.0, 0.05, 0.25), (True, False)):
        errors = diarization_errors(references, hypotheses, collar=collar, score_overlap=score_overlap, regions=regions)
        expected = slow_der(references, hypotheses, collar, score_overlap, regions)
        assert errors.recordings == ("a", "b")
        rows = zip(errors.scored, errors.missed, errors.false_alarm, errors.confusion, strict=True)
        for name, row in zip(errors.recordings, rows, strict=True):
            assert any(np.allclose(row, choice, rtol=0, atol=1e-9) for choice in expected[name])


def test_a_conversation_worked_by_hand() -> None:
    references = [Segment("x", 0, 10, "A"), Segment("x", 10, 20, "B"), Segment("x", 18, 24, "A")]
    hypotheses = [Segment("x", 1, 12, "1"), Segment("x", 12, 22, "2"), Segment("x", 23, 26, "1")]
    # 0-1 missed; 10-12 B taken for A; 18-20 A missed beside B; 20-22 A taken for B; 22-23 missed; 24-26 false alarm.
    errors = diarization_errors(references, hypotheses)
    assert (errors.scored, errors.missed, errors.false_alarm, errors.confusion) == ((26.0,), (4.0,), (2.0,), (4.0,))
    metrics = errors.metrics()
    assert metrics["der"].value == pytest.approx(10 / 26, abs=1e-12)
    assert metrics["der"].value == pytest.approx(
        sum(metrics[k].value for k in ("missed", "false_alarm", "confusion")), abs=1e-12
    )
    assert (metrics["der"].n, metrics["der"].unit) == (1, "recordings")
    alone = diarization_errors(references, hypotheses, score_overlap=False)
    assert (alone.scored, alone.missed, alone.confusion) == ((22.0,), (2.0,), (4.0,))
    # A collar of 1 s takes away 0-1, 9-11, 17-21 and 23-25.
    forgiving = diarization_errors(references, hypotheses, collar=1.0)
    assert (forgiving.scored, forgiving.missed) == ((16.0,), (1.0,))
    assert (forgiving.false_alarm, forgiving.confusion) == ((1.0,), (2.0,))


def test_the_mapping_is_made_before_collars_are_taken_away() -> None:
    references = [Segment("x", 0, 1.0, "A"), Segment("x", 2, 2.9, "A")]
    hypotheses = [Segment("x", 0, 1.0, "1"), Segment("x", 2, 2.9, "2")]
    errors = diarization_errors(references, hypotheses, collar=0.25)
    assert errors.confusion == pytest.approx((0.4,), abs=1e-12)  # A is '1', which is together with it for 1.0 s


def test_collars_lie_around_segments_that_touch_but_not_within_overlapping_ones() -> None:
    def seconds(second_start: float) -> float:
        references = [Segment("x", 0, 2, "A"), Segment("x", second_start, 4, "A")]
        return diarization_errors(references, [], collar=0.5).scored[0]

    assert seconds(2.0) == pytest.approx(2.0, abs=1e-12)  # 0.5-1.5 and 2.5-3.5
    assert seconds(1.9) == pytest.approx(3.0, abs=1e-12)  # 0.5-3.5
    assert seconds(2.0 - 4e-16) == pytest.approx(2.0, abs=1e-12)  # rounding is no overlap


def test_recordings_are_pooled_by_time_and_not_by_rate() -> None:
    references = [Segment("long", 0, 90, "A"), Segment("short", 0, 10, "A")]
    errors = diarization_errors(references, [Segment("long", 0, 90, "B")])
    pooled = errors.rate()
    assert pooled.value == pytest.approx(0.1, abs=1e-12)
    assert pooled.n == 2
    assert (pooled.low, pooled.high) == (0.0, 1.0)
    assert {k: v.value for k, v in errors.rates_by(["p", "q"]).items()} == {"p": 0.0, "q": 1.0}
    with pytest.raises(SpeechsslError, match="but have 1 for 2"):
        errors.rates_by(["p"])


def test_names_of_speakers_and_the_order_of_segments_mean_nothing() -> None:
    rng = np.random.default_rng(5)
    references, hypotheses = random_segments(rng, "a", 3, 8), random_segments(rng, "a", 3, 8)
    renamed = [Segment(s.recording, s.start, s.end, {"s0": "s2", "s1": "x", "s2": "s0"}[s.speaker]) for s in hypotheses]
    plain = diarization_errors(references, hypotheses, collar=0.05)
    assert diarization_errors(references[::-1], renamed[::-1], collar=0.05).errors == pytest.approx(
        plain.errors, abs=1e-9
    )
    assert diarization_errors(references, references).errors == (0.0,)


def test_silence_and_empty_hypotheses_have_defined_errors() -> None:
    assert diarization_errors([Segment("x", 1, 3, "A")], []).missed == (2.0,)
    regions = [Region("quiet", 0, 5), Region("x", 0, 5)]
    hypotheses = [Segment("quiet", 1, 2, "1"), Segment("x", 1, 3, "1")]
    errors = diarization_errors([Segment("x", 1, 3, "A")], hypotheses, regions=regions)
    assert (errors.recordings, errors.false_alarm, errors.rate().value) == (("quiet", "x"), (1.0, 0.0), 0.5)
    with pytest.raises(SpeechsslError, match="no scored speech in quiet"):
        diarization_errors([], hypotheses[:1], regions=regions[:1]).rate()
    with pytest.raises(SpeechsslError, match="no scored speech in x"):
        diarization_errors([Segment("x", 1, 3, "A")], [], collar=2.0).rate()


def test_recordings_without_a_region_are_left_out_with_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    references = [Segment("x", 0, 1, "A"), Segment("y", 0, 1, "A")]
    with caplog.at_level(logging.WARNING):
        assert diarization_errors(references, [], regions=[Region("y", 0, 2)]).recordings == ("y",)
    assert "1 recordings" in caplog.text


def test_bad_segments_are_refused_with_their_place() -> None:
    good = [Segment("x", 0, 1, "A")]
    with pytest.raises(SpeechsslError, match=r"hypotheses\[0\] of 'x' must end after its start, but is from 2 to 2"):
        diarization_errors(good, [Segment("x", 2, 2, "A")])
    with pytest.raises(SpeechsslError, match="recording 'X' that neither"):
        diarization_errors(good, [Segment("X", 0, 1, "A")])
    with pytest.raises(SpeechsslError, match="`collar`"):
        diarization_errors(good, good, collar=-0.1)
    with pytest.raises(SpeechsslError, match="no recordings"):
        diarization_errors([], [])
    with pytest.raises(SpeechsslError, match="no recordings"):
        jaccard_errors(good, good, regions=[])


def slow_jer(references: Sequence[Segment], hypotheses: Sequence[Segment]) -> float:
    errors: list[float] = []
    for name in sorted({s.recording for s in references}):
        ticks = [
            (active(references, name, (t + 0.5) * STEP), active(hypotheses, name, (t + 0.5) * STEP)) for t in range(600)
        ]
        spoken = sorted(set().union(*(r for r, _ in ticks)))
        guessed = [*sorted(set().union(*(h for _, h in ticks))), *[None] * len(spoken)]
        best: list[float] = [2.0] * len(spoken)
        for chosen in itertools.permutations(guessed, len(spoken)):
            rates = []
            for speaker, other in zip(spoken, chosen, strict=True):
                both = sum(speaker in r and other in h for r, h in ticks)
                either = sum(speaker in r or other in h for r, h in ticks)
                rates.append(1 - both / either)
            best = min(best, rates, key=sum)
        errors += best
    return sum(errors) / len(errors)


@pytest.mark.parametrize("seed", range(6))
def test_jaccard_error_rate_is_that_of_a_loop_over_a_fine_grid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    references = random_segments(rng, "a", 3, 6) + random_segments(rng, "b", 2, 4)
    hypotheses = random_segments(rng, "a", 2, 6) + random_segments(rng, "b", 1 + seed % 3, 4)
    found = jaccard_errors(references, hypotheses)
    assert found.value == pytest.approx(slow_jer(references, hypotheses), abs=1e-9)
    assert found.unit == "speakers"


def test_jaccard_error_rate_of_no_hypotheses_is_one_and_of_the_truth_zero() -> None:
    references = [Segment("x", 0, 1, "A"), Segment("x", 0.5, 3, "B"), Segment("y", 0, 1, "A")]
    assert (jaccard_errors(references, []).value, jaccard_errors(references, []).n) == (1.0, 3)
    assert jaccard_errors(references, references).value == 0.0
    # A is found to the half, B not at all, and the third speaker belongs to nobody.
    hypotheses = [Segment("x", 0, 0.5, "1"), Segment("y", 0, 1, "1"), Segment("x", 5, 9, "2")]
    assert jaccard_errors(references, hypotheses).value == pytest.approx((0.5 + 1 + 0) / 3, abs=1e-12)


def slow_median(column: Sequence[bool], width: int) -> list[bool]:
    half = width // 2
    padded = [False] * half + list(column) + [False] * half
    return [sorted(padded[t : t + width])[half] for t in range(len(column))]


@pytest.mark.parametrize(("median", "frames"), [(1, 30), (3, 30), (11, 60), (11, 4), (5, 0)])
def test_frames_become_segments_after_threshold_and_median(median: int, frames: int) -> None:
    activity = np.random.default_rng(median).random((frames, 2))
    segments = segments_from_activity(activity, 50.0, recording="r", threshold=0.4, median=median)
    for speaker in range(2):
        own = [s for s in segments if s.speaker == f"r_{speaker}"]
        found = [any(s.start <= (t + 0.5) / 50 < s.end for s in own) for t in range(frames)]
        assert found == slow_median((activity[:, speaker] > 0.4).tolist(), median)
        assert all(a.end < b.start for a, b in itertools.pairwise(own))
    assert all(s.recording == "r" for s in segments)


def test_a_frame_at_the_threshold_is_silence_and_times_are_frames_over_the_rate() -> None:
    activity = [[0.5], [0.51], [0.9], [0.5]]
    found = segments_from_activity(activity, 100.0, recording="r", threshold=0.5, median=1)
    assert found == [Segment("r", 0.01, 0.03, "r_0")]
    for arguments, word in (
        ({"median": 2}, "`median`"),
        ({"frame_rate": 0.0}, "`frame_rate`"),
        ({"activity": [1.0]}, "r"),
    ):
        given = {"activity": activity, "frame_rate": 1.0, "recording": "r", "threshold": 0.5, "median": 1, **arguments}
        with pytest.raises(SpeechsslError, match=word):
            segments_from_activity(given.pop("activity"), given.pop("frame_rate"), **given)  # type: ignore[arg-type]


def test_rttm_and_uem_are_read_as_they_were_written(tmp_path: Path) -> None:
    segments = [Segment("a-1", 0.0, 1.25, "spk"), Segment("b", 3.000001, 7.5, "ž")]
    write_rttm(tmp_path / "x" / "s.rttm", segments)
    for read, given in zip(read_rttm(tmp_path / "x" / "s.rttm"), segments, strict=True):
        assert (read.recording, read.speaker) == (given.recording, given.speaker)
        assert (read.start, read.end) == pytest.approx((given.start, given.end), abs=1e-6)
    regions = [Region("a-1", 0.0, 9.0), Region("a-1", 10.5, 12.0)]
    write_uem(tmp_path / "s.uem", regions)
    assert read_uem(tmp_path / "s.uem") == regions


def test_comments_byte_order_mark_crlf_and_other_types_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s.rttm"
    path.write_bytes(
        b"\xef\xbb\xbf;; made by hand\r\nSPKR-INFO a 1 <NA> <NA> <NA> unknown A <NA> <NA>\r\n\r\n"
        b"SPEAKER a 1   1.50   2.00 <NA> <NA> A <NA>\r\n"
    )
    with caplog.at_level(logging.INFO):
        assert read_rttm(path) == [Segment("a", 1.5, 3.5, "A")]
    assert "1 lines that are not SPEAKER" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("SPEAKER a 1 0.0 1.0 <NA> <NA> A", "line 2 must have at least 9 fields, but has 8"),
        ("SPEAKER a 1 zero 1.0 <NA> <NA> A <NA> <NA>", "line 2 must have a start in seconds >= 0, but has 'zero'"),
        ("SPEAKER a 1 -1 1.0 <NA> <NA> A <NA> <NA>", "line 2 must have a start in seconds >= 0, but has '-1'"),
        ("SPEAKER a 1 0 nan <NA> <NA> A <NA> <NA>", "line 2 must have a duration in seconds >= 0, but has 'nan'"),
        ("SPEAKER a 1 0 0.00 <NA> <NA> A <NA> <NA>", "line 2 must have a positive duration"),
        ("SPEAKER a 2 0 1 <NA> <NA> A <NA> <NA>", "line 2 has channel 2 of 'a', but .*line 1 has channel 1"),
    ],
)
def test_a_bad_line_of_rttm_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.rttm"
    path.write_text(f"SPEAKER a 1 0.0 1.0 <NA> <NA> A <NA> <NA>\n{line}\n", encoding="utf-8")
    with pytest.raises(ManifestError, match=f"bad.rttm, {message}"):
        read_rttm(path)


def test_bad_uem_bad_names_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.uem"
    path.write_text("a 1 0 10\na 1 5 5\n", encoding="utf-8")
    with pytest.raises(ManifestError, match=r"bad.uem, line 2 must end after its start"):
        read_uem(path)
    path.write_text("a 0 10\n", encoding="utf-8")
    with pytest.raises(ManifestError, match=r"bad.uem, line 1 must have 4 fields, but has 3"):
        read_uem(path)
    path.write_bytes(b"a 1 0 10\n\xff 1 0 1\n")
    with pytest.raises(ManifestError, match=r"bad.uem, line 2, is not UTF-8"):
        read_uem(path)
    with pytest.raises(ManifestError, match=r"absent\.rttm does not exist"):
        read_rttm(tmp_path / "absent.rttm")
    with pytest.raises(ManifestError, match="must be one word, but is 'two words'"):
        write_rttm(tmp_path / "s.rttm", [Segment("two words", 0, 1, "A")])
    assert not (tmp_path / "s.rttm").exists()


def test_a_rate_needs_reference_speech() -> None:
    with pytest.raises(SpeechsslError, match="no scored speech"):
        DiarizationErrors(("a",), (0.0,), (0.0,), (0.0,), (0.0,)).rate()
