"""`speechssl score voice_conversion`: lists that people write, judges in miniature, both anchors; no network."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from command_line import run, the_sentence
from torch import Tensor

from downstreams.voice_conversion import score as scoring
from downstreams.voice_conversion.score_list import Conversion, read_conversions
from downstreams.voice_conversion.score_speech import Speech
from downstreams.voice_conversion.score_voices import Voices, find_speakers
from speechssl.audio import read_audio
from speechssl.errors import SpeechsslError
from speechssl.metric.conversion import compare_recordings
from speechssl.metric.detection import equal_error_rate
from speechssl.metric.mel_cepstrum import WorldSettings, find_f0_range
from speechssl.scoring import ScoreOptions, Scores
from speechssl.vocoder.griffin_lim import GriffinLim

RATE = 16_000
WORDS = {"a": "one two", "b": "three"}


class _Spectra:
    """Compares mean spectra: of sounds of one pitch they are alike."""

    def embed(self, waveform: Tensor) -> Tensor:
        frames = waveform.unfold(0, 1024, 512).mul(torch.hann_window(1024))
        return torch.nn.functional.normalize(torch.fft.rfft(frames).abs().mean(dim=0)[:200], dim=0)


class _Lengths:
    """Hears what its length says."""

    def normalize(self, text: str) -> str:
        return "".join(c for c in text.lower() if c.isalpha() or c == " ").strip()

    def transcribe(self, waveform: Tensor) -> str:
        return WORDS["a"] if len(waveform) > 1.1 * RATE else WORDS["b"]


class _Loudness:
    def score(self, waveform: Tensor) -> float:
        return float(waveform.abs().max())


@pytest.fixture(autouse=True)
def judges(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes: dict[str, Callable[[], Any]] = {
        "voice": _Spectra, "ecapa": _Spectra, "words": _Lengths, "quality": _Loudness,
    }  # fmt: skip
    monkeypatch.setattr(scoring, "JUDGES", {name: lambda device, make=make: make() for name, make in fakes.items()})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sources of 120 Hz, two targets of 210 and 300 Hz, and conversions at the first target's pitch."""
    pitches = {"source1": 120, "source2": 121, "low1": 210, "low2": 212, "low3": 211, "high1": 300, "high2": 302}
    pitches |= {"converted1": 211, "converted2": 301, "parallel": 213}
    for number, (name, pitch) in enumerate(pitches.items()):
        seconds = 1.2 if name.endswith("1") or name == "parallel" else 1.0
        time = np.arange(int(seconds * RATE)) / RATE
        phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.03 * np.sin(2 * np.pi * (2 + number % 3) * time))) / RATE
        sound = 0.05 * sum(np.sin(n * phase) / n for n in range(1, 12))
        sound = sound * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time))
        soundfile.write(
            tmp_path / f"{name}.wav", sound + 1e-4 * np.random.default_rng(number).normal(size=len(time)), RATE
        )
    rows = [
        "converted\tsource\ttarget\ttext\tparallel\tnote",
        "converted1.wav\tsource1.wav\tlow1.wav;low2.wav;low3.wav\tOne two!\tparallel.wav\tany",
        "converted2.wav\tsource2.wav\thigh1.wav; high2.wav\tThree four.",
    ]
    (tmp_path / "list.tsv").write_bytes(("\ufeff" + "".join(row + "\r\n" for row in rows)).encode())
    return tmp_path


def _score(folder: Path, *, list_: str = "list.tsv", **settings: str) -> Scores:
    options = ScoreOptions(settings={"vocoder": "griffin_lim", **settings})
    return scoring.score([folder / list_], options)


def test_conversions_are_measured_beside_both_anchors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "out"
    assert run("score", "voice_conversion", folder / "list.tsv", "-o", out, "-s", "vocoder=griffin_lim") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 conversions, with 95 % intervals" in shown and "items.tsv" in shown
    found = json.loads((out / "scores.json").read_text())
    metrics = found["metrics"]
    assert list(metrics) == list(scoring.MEASURES)
    for name in ("similarity", "nearer_target", "wer", "quality"):
        assert list(metrics[name]) == ["converted", "unconverted", "copy synthesis"]
    nearer = {condition: value["value"] for condition, value in metrics["nearer_target"].items()}
    assert nearer == {"converted": 1.0, "unconverted": 0.0, "copy synthesis": 1.0}
    assert metrics["acceptance"]["converted"]["value"] == 1.0 and metrics["acceptance"]["unconverted"]["value"] == 0.0
    assert metrics["wer"]["converted"] | {"low": 0, "high": 0} == {
        "value": 0.25, "n": 4, "unit": "words", "low": 0, "high": 0,
    }  # fmt: skip
    assert found["settings"]["vocoder"] == "Griffin-Lim" and found["settings"]["sample_rate"] == RATE
    with (out / "items.tsv").open(newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t"))
    assert [line["wer"] for line in lines] == ["0", "0.5"] and lines[1]["mcd"] == ""
    assert float(lines[0]["mcd (unconverted)"]) > 0 and lines[0]["heard"] == "one two"
    for measured in metrics.values():
        for value in measured.values():
            assert math.isfinite(value["value"]) and value["low"] <= value["high"]


def test_distances_are_those_of_the_metric_and_need_no_judge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "JUDGES", {})
    measures = ("f0_rmse", "mcd", "f0_correlation", "ddur")
    settings = {"vocoder": "none", "mcd_order": "24", "mcd_energy": "no"}
    found = scoring.score([folder / "list.tsv"], ScoreOptions(measures, settings=settings))
    assert list(found.metrics) == ["mcd", "f0_rmse", "f0_correlation", "ddur"]
    assert found.settings["mcd_order"] == 24 and found.settings["mcd_energy"] is False
    paths = [folder / f"{name}.wav" for name in ("low1", "low2", "low3", "parallel")]
    waveforms = [read_audio(path).double().numpy() for path in paths]
    f0_range = find_f0_range(waveforms, RATE)
    assert f0_range is not None
    converted = read_audio(folder / "converted1.wav").double().numpy()
    analysis = WorldSettings(order=24)
    expected = compare_recordings(converted, waveforms[-1], RATE, f0_range=f0_range, settings=analysis, energy=False)
    for name in ("mcd", "f0_rmse", "f0_correlation", "ddur"):
        value = found.metrics[name]["converted"]
        assert value.value == pytest.approx(getattr(expected, name), rel=1e-9) and value.n == 1
    assert found.notes == (f"1 line without 'parallel', such as {folder / 'list.tsv'}, line 3.",)


def test_what_can_not_be_measured_is_said_once_with_its_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "JUDGES", {})
    for name in ("converted1", "source2"):
        soundfile.write(folder / f"{name}.wav", np.zeros(RATE), RATE)
    rows = ("converted1.wav\tsource1.wav", "converted2.wav\tsource2.wav")
    lines = [f"{row}\tlow1.wav\tparallel.wav\n" for row in rows]
    (folder / "silent.tsv").write_text("converted\tsource\ttarget\tparallel\n" + "".join(lines))
    options = ScoreOptions(("mcd", "ddur"), settings={"vocoder": "none"})
    found = scoring.score([folder / "silent.tsv"], options)
    every = "mcd, f0_rmse, f0_correlation, ddur"
    assert found.notes == (
        f"On 1 line no {every}: the conversion is silent.",
        f"On 1 line no {every}: the source is silent.",
    )
    assert [value.n for value in found.metrics["mcd"].values()] == [1, 1]
    assert [item["mcd"] is None for item in found.items] == [True, False]


def test_a_list_of_json_lines_says_the_same(folder: Path) -> None:
    rows = [
        {"converted": "converted1.wav", "source": "source1.wav", "target": ["low1.wav", "low2.wav", "low3.wav"],
         "text": "One two!", "parallel": "parallel.wav"},
        {"converted": "converted2.wav", "source": "source2.wav", "target": "high1.wav;high2.wav", "text": "Three."},
    ]  # fmt: skip
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    assert [c.files() for c in read_conversions(folder / "list.jsonl")] == [
        c.files() for c in read_conversions(folder / "list.tsv")
    ]
    assert read_conversions(folder / "list.jsonl")[0].text == "One two!"


def test_files_that_share_a_recording_or_a_name_are_one_speaker() -> None:
    def conversion(targets: str, source: str, **names: str) -> Conversion:
        return Conversion("", Path("x"), Path(source), tuple(map(Path, targets)), **names)  # type: ignore[arg-type]

    found = find_speakers(
        [
            conversion("ab", "s"),
            conversion("bc", "s"),
            conversion("d", "t", target_speaker="ann"),
            conversion("e", "u", target_speaker="ann", source_speaker="bob"),
            conversion("f", "v", source_speaker="bob"),
        ]
    )
    groups = [{p.name for p, who in found.items() if who == speaker} for speaker in sorted(set(found.values()))]
    assert sorted(map(sorted, groups)) == [["a", "b", "c"], ["d", "e"], ["f"], ["s"], ["t"], ["u", "v"]]


def test_the_threshold_errs_equally_on_the_real_speech_of_the_list(folder: Path) -> None:
    conversions = read_conversions(folder / "list.tsv")
    voices = Voices(conversions, Speech(None, None), _Spectra())
    embed = {p.stem: _Spectra().embed(read_audio(p)) for p in folder.glob("*.wav")}

    def mean(*names: str) -> Tensor:
        return torch.nn.functional.normalize(torch.stack([embed[n] for n in names]).mean(dim=0), dim=0)

    low, high = ("low1", "low2", "low3"), ("high1", "high2")
    same = [embed[n] @ mean(*(o for o in group if o != n)) for group in (low, high) for n in group]
    same += [embed["parallel"] @ mean(*low)]
    other = [embed[n] @ mean(*low) for n in (*high, "source1", "source2")]
    other += [embed[n] @ mean(*high) for n in (*low, "parallel", "source1", "source2")]
    expected = equal_error_rate([float(x) for x in same], [float(x) for x in other])
    assert voices.calibrate() == (*map(pytest.approx, expected), len(same) + len(other))


def test_the_upper_anchor_has_no_part_in_the_profile_it_is_compared_with(folder: Path) -> None:
    speech = Speech(GriffinLim(), None)
    voices = Voices([], speech, _Spectra())
    low, parallel = tuple(folder / f"low{k}.wav" for k in (1, 2, 3)), folder / "parallel.wav"
    for given, spoken, others in ((None, low[0], low[1:]), (parallel, parallel, low)):
        found = voices.held_out(Conversion("", folder, folder, low, parallel=given))
        assert found is not None
        torch.testing.assert_close(found[0], _Spectra().embed(speech.copy(spoken)))
        torch.testing.assert_close(found[1], voices.profile(others))
    assert voices.held_out(Conversion("", folder, folder, low[:1])) is None  # of 1.2 s no half is of use
    samples = np.tile(soundfile.read(low[0])[0], 4)
    soundfile.write(folder / "long.wav", samples, RATE)
    found = voices.held_out(Conversion("", folder, folder, (folder / "long.wav",)))
    assert found is not None
    torch.testing.assert_close(found[1], _Spectra().embed(read_audio(folder / "long.wav")[: len(samples) // 2]))


def test_without_trials_acceptance_is_left_out_or_given_a_threshold(folder: Path) -> None:
    (folder / "one.tsv").write_text("converted\tsource\ttarget\nconverted1.wav\tsource1.wav\tlow1.wav\n")
    found = _score(folder, list_="one.tsv", vocoder="none")
    assert "acceptance" not in found.metrics and "similarity" in found.metrics
    assert list(found.metrics["similarity"]) == ["converted", "unconverted"]
    assert any("No acceptance: a threshold needs two files" in note for note in found.notes)
    assert any("No wer, cer: no line fills the column 'text'" in note for note in found.notes)
    given = _score(folder, list_="one.tsv", vocoder="none", threshold="0.5")
    assert given.metrics["acceptance"]["converted"].value == 1.0 and given.settings["threshold"] == 0.5


HEAD = "converted\tsource\ttarget\ttext"
GOOD = "converted1.wav\tsource1.wav\tlow1.wav\ta"
BAD_LISTS = {
    "empty": ("", "names no conversion: give one"),
    "names alone": (HEAD, "names no conversion: give one"),
    "no column": ("converted\tsorce\ttarget\n" + GOOD, "line 1, names no column 'source' .* Did you mean 'sorce'"),
    "commas": ("converted,source,target\na,b,c", "line 1, names no column .* Separate the names by tabs"),
    "column twice": (HEAD + "\tsource\n" + GOOD, "line 1, names the column 'source' twice"),
    "no such file": (f"{HEAD}\n{GOOD}\nx.wav\tsource1.wav\tlow1.wav", "line 3, names .*x.wav as 'converted', but"),
    "no such target": (f"{HEAD}\nconverted1.wav\tsource1.wav\tlow1.wav;y.wav", "line 2, names .*y.wav as 'target'"),
    "twice": (f"{HEAD}\n{GOOD}\n\n{GOOD}", "line 4, names the conversion .*converted1.wav again, after .*line 2,"),
    "empty cell": (f"{HEAD}\nconverted1.wav\t\tlow1.wav", "line 2, has an empty 'source'"),
    "no target": (f"{HEAD}\nconverted1.wav\tsource1.wav\t ; ", "line 2, has no file of the target"),
    "too many cells": (f"{HEAD}\n{GOOD}\tb\tc", "line 2, has 6 cells for 4 columns"),
    "no words": (f"{HEAD}\nconverted1.wav\tsource1.wav\tlow1.wav\t?!", "line 2, has the text '\\?!', which"),
    "no audio": (f"{HEAD}\nconverted1.wav\tsource1.wav\tempty.wav", "line 2, names as 'target' what can't be .*empty"),
    "too short": (f"{HEAD}\nshort.wav\tsource1.wav\tlow1.wav", "line 2, names as 'converted' .*is 0.050 s"),
    "half a range": (f"{HEAD}\tf0_min\n{GOOD}\t70", "line 2, must have both f0_min and f0_max"),
    "a falling range": (f"{HEAD}\tf0_min\tf0_max\n{GOOD}\t200\t70", "line 2, has F0 from 200 to 70 Hz"),
    "no JSON": ('{"converted": "a"', "line 1, is not JSON"),
    "JSON without a key": ('{"converted": "a", "source": "b"}', "line 1, has no 'target'"),
    "a number for a file": ('{"converted": ["a"], "source": "b", "target": "c"}', "has a 'converted' that is no text"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_LISTS)
def test_a_bad_list_is_one_sentence_with_its_line(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, says = BAD_LISTS[case]
    soundfile.write(folder / "short.wav", np.zeros(800), RATE)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "bad.tsv").write_text(content)
    said = the_sentence(
        capsys, "score", "voice_conversion", folder / "bad.tsv", "-s", "vocoder=none", "-o", folder / "o"
    )
    with pytest.raises(SpeechsslError, match=says):
        raise SpeechsslError(said)
    assert not list(folder.glob("o/*"))


MISTAKES = {
    "unknown measure": (["-m", "similarity,pitch"], "Unknown measure 'pitch'"),
    "unknown setting": (["-s", "vocder=none"], "Unknown setting 'vocder'. Did you mean 'vocoder'"),
    "no setting": (["-s", "vocoder"], "must be given as NAME=VALUE"),
    "unknown vocoder": (["-s", "vocoder=hifi"], "`vocoder` must be 'hifigan'"),
    "no number": (["-s", "threshold=high"], "`threshold` must be a number"),
    "no rate": (["-s", "sample_rate=1"], "`sample_rate` must be from 8000"),
    "no order": (["-s", "mcd_order=0"], "`mcd_order` must be from 1 to 100"),
    "neither yes nor no": (["-s", "mcd_energy=1"], "`mcd_energy` must be yes or no"),
    "no device": (["--device", "gpu"], "The device 'gpu' can't be used"),
    "a column that nobody fills": (["-m", "mcd"], "`mcd` needs the column 'parallel', which"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_on_the_line_is_one_sentence(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, says = MISTAKES[case]
    (folder / "good.tsv").write_text(f"{HEAD}\n{GOOD}\n")
    assert says in the_sentence(capsys, "score", "voice_conversion", folder / "good.tsv", *options)


def test_tasks_lists_and_judges_that_are_missing_are_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "The task 'asr' can't score" in the_sentence(capsys, "score", "asr", folder / "list.tsv")
    assert "Unknown task 'sound'" in the_sentence(capsys, "score", "sound", folder / "list.tsv")
    assert "no.tsv does not exist" in the_sentence(capsys, "score", "voice_conversion", folder / "no.tsv")
    two = [folder / "list.tsv"] * 2
    assert "one list, but 2 files" in the_sentence(capsys, "score", "voice_conversion", *two)

    def offline(device: str) -> Any:
        raise SpeechsslError(f"The package 'x' can't be fetched for {device}: check the network.")

    monkeypatch.setitem(scoring.JUDGES, "quality", offline)
    said = the_sentence(capsys, "score", "voice_conversion", folder / "list.tsv", "-m", "quality", "-s", "vocoder=none")
    assert said.endswith("check the network; or choose measures that don't need it with --measure.")
