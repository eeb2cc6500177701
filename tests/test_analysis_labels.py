"""Labels of phones and words: whoever made them, frames get the label that lies over their centre."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.analysis.aligning import align, alignable
from speechssl.analysis.labels import (
    Labels,
    cleaned,
    frame_codes,
    label_set,
    labels_of_files,
    labels_of_manifest,
    write_labels,
)
from speechssl.data.espeak import Line, speak_all
from speechssl.data.spans import Span
from speechssl.errors import ManifestError
from speechssl.types import Utterance

SPANS = [Span(0.0, 0.1, "sil"), Span(0.1, 0.25, "AH0"), Span(0.25, 0.4, "B"), Span(0.4, 0.5, "AH1")]
LONG = '''File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 0.5
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "one - words"
        xmin = 0
        xmax = 0.5
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 0.1
            text = ""
        intervals [2]:
            xmin = 0.1
            xmax = 0.5
            text = "abba ""quoted"""
    item [2]:
        class = "IntervalTier"
        name = "one - phones"
        xmin = 0
        xmax = 0.5
        intervals: size = 4
'''
"""Praat's long form, without the phones."""


def utterance(name: str = "one", **labels: object) -> Utterance:
    return Utterance(name, f"{name}.wav", 0.0, 0.5, labels)


def write(path: Path) -> str:
    """SPANS in the format that the path's ending says; returns what names it."""
    match path.suffix:
        case ".ctm":
            path.write_text("".join(f"one 1 {s.begin} {s.end - s.begin} {s.value}\n" for s in SPANS))
            return f"phone={path}"
        case ".TextGrid":
            rows = [f'intervals [1]: xmin = {s.begin} xmax = {s.end} text = "{s.value}"' for s in SPANS]
            path.write_bytes((LONG + "\n".join(rows)).encode("utf-16"))
        case ".short":
            path = path.with_name("one.TextGrid")
            head = ["ooTextFile", "TextGrid"]
            tier = ["IntervalTier", "phones"]
            rows = [f'{s.begin}\n{s.end}\n"{s.value}"' for s in SPANS]
            quoted = [f'File type = "{head[0]}"', f'"{head[1]}"', "", "0", "0.5", "<exists>", "1"]
            path.write_text("\n".join([*quoted, *(f'"{t}"' for t in tier), "0", "0.5", "4", *rows]))
        case ".item":
            rows = [f"one {s.begin} {s.end} {s.value} x y someone" for s in SPANS]
            path.write_text("\n".join(["#file onset offset #phone prev-phone next-phone speaker", *rows]))
        case _:
            write_labels(Labels({"phone": {"one": SPANS}}), path)
    return str(path)


@pytest.mark.parametrize("name", ["one.ctm", "one.TextGrid", "one.short", "one.item", "one.jsonl"])
def test_every_format_says_the_same(name: str, tmp_path: Path) -> None:
    spec = write(tmp_path / name)
    labels = cleaned(labels_of_files([spec], [utterance(), utterance("two")]), [utterance(), utterance("two")])
    found = labels.of("phone")["one"]
    assert [s.value for s in found] == ["AH", "B", "AH"]  # without silence and stress
    times = np.array([(s.begin, s.end) for s in found])
    np.testing.assert_allclose(times, [(0.1, 0.25), (0.25, 0.4), (0.4, 0.5)], atol=1e-9)


def test_a_grid_has_its_words_too(tmp_path: Path) -> None:
    labels = labels_of_files([write(tmp_path / "one.TextGrid")], [utterance()])
    assert [s.value for s in labels.of("word")["one"]] == ["", 'abba "quoted"']


@pytest.mark.parametrize("rate", [50.0, 100.0, 1000.0])
def test_labels_in_other_units_than_seconds_are_refused_with_the_rate_that_they_are_at(rate: float) -> None:
    spans = [Span(s.begin * rate, s.end * rate, s.value) for s in SPANS]
    labels = Labels({"phone": {"one": spans}}, {"phone": "a file"})
    with pytest.raises(ManifestError, match=rf"not in seconds.*--label-rate {rate:g}"):
        cleaned(labels, [utterance()])
    times = [(s.begin, s.end) for s in cleaned(labels, [utterance()], rate=rate).of("phone")["one"]]
    np.testing.assert_allclose(times, [(s.begin, s.end) for s in SPANS[1:]], atol=1e-9)


def test_a_rate_for_labels_that_are_in_seconds_is_refused() -> None:
    with pytest.raises(ManifestError, match="leave out `--label-rate`"):
        cleaned(Labels({"phone": {"one": SPANS}}, {"phone": "a file"}), [utterance()], rate=100.0)


def test_single_labels_outside_of_their_audio_are_left_out_and_counted() -> None:
    spans = [*SPANS, Span(0.5, 0.7, "B")]
    labels = cleaned(Labels({"phone": {"one": spans}}, {"phone": "a file"}), [utterance()])
    assert [s.value for s in labels.of("phone")["one"]] == ["AH", "B", "AH"]
    assert labels.warnings == ["1 phone labels of a file lie outside of their audio: left out."]


@pytest.mark.parametrize("rate", [25.0, 49.95, 50.0, 100.0])
def test_a_frame_has_the_label_over_its_centre(rate: float) -> None:
    frames = int(0.6 * rate)
    codes = frame_codes(SPANS[1:3], {"AH0": 0, "B": 1}, frames=frames, frame_rate=rate)
    centres = (np.arange(frames) + 0.5) / rate
    expected = [0 if 0.1 <= c < 0.25 else 1 if 0.25 <= c < 0.4 else -1 for c in np.round(centres, 9)]
    assert codes.tolist() == expected


def test_lists_of_a_manifest_count_and_rare_labels_can_be_left_out(tmp_path: Path) -> None:
    entries = [{"start": s.begin, "end": s.end, "value": s.value} for s in SPANS]
    labels = cleaned(labels_of_manifest([utterance(phones=entries), utterance("two")], tmp_path), [utterance()])
    assert label_set(labels.of("phone")) == ["AH", "B"]
    assert label_set(labels.of("phone"), fewest=2) == ["AH"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.ctm", "one 1 x 0.1 B\n", "line 1, must be '<id> <channel>"),
        ("a.ctm", "other 1 0 0.1 B\n", "labels none of the 1 utterances: it labels 'other'"),
        ("a.TextGrid", 'File type = "ooTextFile"\n', "is no TextGrid that can be read"),
        ("a.jsonl", "[1]\n", "line 1, must be"),
        ("a.mlf", "", "is none of .TextGrid, .ctm, .item and .jsonl"),
    ],
)
def test_files_that_are_no_labels_are_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ManifestError, match=message):
        labels_of_files([str(tmp_path / name)], [utterance()])


def test_the_aligner_finds_words_where_they_are_said_and_their_phones_fill_them(tmp_path: Path) -> None:
    pytest.importorskip("pocketsphinx")
    pytest.importorskip("espeakng_loader")
    words = ["hello", "number"]
    speak_all([Line(w, tmp_path / f"{w}.flac", w, "en-us", 50, 150, "en", "one") for w in words])
    first, second = (soundfile.read(tmp_path / f"{w}.flac", dtype="float32")[0] for w in words)
    pause = np.random.default_rng(0).normal(0, 1e-4, 8000).astype(np.float32)  # half a second
    soundfile.write(tmp_path / "both.wav", np.concatenate([first, pause, second]), 16_000)
    edges = [len(first) / 16_000, (len(first) + len(pause)) / 16_000]
    both = Utterance("both", str(tmp_path / "both.wav"), 0.0, None, {"text": "hello, number", "language": "en"})
    odd = Utterance("odd", both.path, 0.0, None, {"text": "xyzzyq", "language": "en"})
    assert alignable([both, odd, utterance(text="ja", language="nl"), utterance(language="en")]) == [both, odd]

    labels = align([both, odd])
    hello, number = labels.of("word")["both"]
    assert (hello.value, number.value) == ("hello", "number")
    assert hello.end < edges[0] + 0.1
    assert edges[1] - 0.1 < number.begin < number.end <= both_seconds(tmp_path) + 0.011
    phones = labels.of("phone")["both"]
    assert [p.value for p in phones if p.begin >= number.begin] == ["N", "AH", "M", "B", "ER"]
    np.testing.assert_allclose([p.begin for p in phones[-4:]], [p.end for p in phones[-5:-1]], atol=1e-9)
    assert labels.warnings == ["1 English utterances are not aligned: 1 (words that the dictionary lacks)."]


def both_seconds(folder: Path) -> float:
    return float(soundfile.info(folder / "both.wav").duration)
