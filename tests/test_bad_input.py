"""Bad input ends in one sentence that names the file or key and the remedy, and keeps what was computed."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from command_line import run, the_sentence

from speechssl.cli import main

RATE = 16_000


def write(path: Path, samples: np.ndarray, rate: int = RATE) -> None:
    soundfile.write(path, samples, rate, subtype="FLOAT")


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.3, 0.3, round(seconds * RATE)).astype(np.float32)


def not_finite(path: Path) -> None:
    samples = noise(0.5)
    samples[100] = np.nan
    write(path, samples)


def cut_off(path: Path) -> None:
    soundfile.write(path, noise(1.0), RATE, format="FLAC")
    path.write_bytes(path.read_bytes()[:6000])


BAD_AUDIO: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "text": lambda path: path.write_text("words, not samples\n" * 99),
    "random bytes": lambda path: path.write_bytes(np.random.default_rng(0).bytes(9999)),
    "zero bytes": lambda path: path.write_bytes(b""),
    "no samples": lambda path: write(path, noise(0.0)),
    "not finite": not_finite,
    "shorter than a frame": lambda path: write(path, noise(0.005)),
    "cut off": cut_off,
}


@pytest.mark.parametrize("case", BAD_AUDIO)
def test_extract_names_the_bad_file(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.wav"
    BAD_AUDIO[case](bad)
    assert str(bad) in the_sentence(capsys, "extract", "fbank", bad, "-o", tmp_path / "out")


@pytest.mark.parametrize("case", BAD_AUDIO)
def test_extract_goes_on_with_skip_bad_and_lists_it(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good, out = tmp_path / "bad.wav", tmp_path / "good.wav", tmp_path / "out"
    BAD_AUDIO[case](bad)
    write(good, noise(0.5))
    assert run("extract", "fbank", good, bad, "-o", out, "--skip-bad") == 0
    assert (out / "good.safetensors").is_file()
    assert [line.split("\t")[0] for line in (out / "bad.tsv").read_text().splitlines()] == ["id", "bad"]


def test_what_was_extracted_before_a_bad_file_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    write(tmp_path / "long.wav", noise(1.0))
    not_finite(tmp_path / "short.wav")  # its header is sound, so it is met only when it is read
    argv = ("extract", "fbank", tmp_path / "short.wav", tmp_path / "long.wav", "-o", out, "--batch-seconds", 1)
    assert "short.wav" in the_sentence(capsys, *argv)
    assert [json.loads(x)["id"] for x in (out / "index.jsonl").read_text().splitlines()] == ["long"]


def a_folder_without_audio(root: Path) -> Path:
    (root / "empty").mkdir()
    return root / "empty"


def a_manifest_that_points_nowhere(root: Path) -> Path:
    path = root / "nowhere.jsonl"
    recording = {"sources": [{"source": "gone.flac"}]}
    path.write_text(json.dumps({"id": "x", "start": 0, "duration": 1, "recording": recording}) + "\n")
    return path


def a_manifest_of_other_json(root: Path) -> Path:
    (root / "other.jsonl").write_text('{"what": 1}\n')
    return root / "other.jsonl"


def a_manifest_cut_off(root: Path) -> Path:
    path = root / "cut.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write("x" * 9999)
    path.write_bytes(path.read_bytes()[:40])
    return path


BAD_INPUTS = {
    "folder without audio": (a_folder_without_audio, "empty"),
    "pattern without matches": (lambda root: root / "*.flac", "*.flac"),
    "missing manifest": (lambda root: root / "missing.jsonl", "missing.jsonl"),
    "manifest that points nowhere": (a_manifest_that_points_nowhere, "gone.flac"),
    "manifest of other JSON": (a_manifest_of_other_json, "other.jsonl"),
    "manifest cut off": (a_manifest_cut_off, "cut.jsonl.gz"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_extract_names_the_bad_input(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, names = BAD_INPUTS[case]
    assert names in the_sentence(capsys, "extract", "fbank", make(tmp_path), "-o", tmp_path / "out")


def test_an_unknown_upstream_is_answered_with_a_near_match(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.wav", noise(0.5))
    line = the_sentence(capsys, "extract", "fbnk", tmp_path / "a.wav", "-o", tmp_path / "out")
    assert "'fbnk'" in line and "Did you mean 'fbank'?" in line


def test_a_layer_beyond_the_last_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.wav", noise(0.5))
    argv = ("extract", "fbank", tmp_path / "a.wav", "-o", tmp_path / "out", "--layers", "9")
    assert "9" in the_sentence(capsys, *argv)


def test_an_output_that_is_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.wav", noise(0.5))
    (tmp_path / "out").write_text("a file")
    assert "out" in the_sentence(capsys, "extract", "fbank", tmp_path / "a.wav", "-o", tmp_path / "out")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="does not exist"):
        main(["extract", "fbank", str(tmp_path / "gone.wav"), "-o", str(tmp_path / "out"), "--debug"])


@pytest.fixture
def corpus(tiny_corpus: Path, tmp_path: Path) -> Path:
    """A copy of the tiny corpus that may be damaged."""
    return Path(shutil.copytree(tiny_corpus, tmp_path / "corpus"))


@pytest.fixture
def asr(corpus: Path, tmp_path: Path) -> list[object]:
    how = ["--corpus", corpus, "-o", tmp_path / "exp", "--cache", tmp_path / "cache"]
    small = ["train.steps=2", "train.evaluate_every=2", "train.batch_seconds=4"]
    return ["run", "asr_demo", "-u", "fbank", *how, *(x for s in small for x in ("--set", s))]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (["run", "asrr", "-u", "fbank"], "'asrr'"),
        (["run", "asr_demo", "-u", "hubert_tyni"], "'hubert_tyni'"),
        (["run", "asr_demo", "-u", "fbank", "--set", "train.stepz=3"], "train.stepz"),
        (["run", "asr_demo", "-u", "fbank", "--set", "train.steps=many"], "train.steps"),
        (["run", "asr_demo", "-u", "fbank", "--config", "gone.yaml"], "gone.yaml"),
        (["pretrain", "hubert_tyni", "--labels", "gone"], "'hubert_tyni'"),
        (["pretrain", "hubert_tiny", "--labels", "gone"], "gone"),
        (["pretrain", "hubert_tiny", "train.stepz=3", "--labels", "gone"], "train.stepz"),
        (["cluster", "--upstream", "mfccc"], "'mfccc'"),
        (["cluster", "--upstream", "mfcc", "--split", "trian"], "'trian'"),
    ],
)
def test_an_unknown_name_or_key_is_named(
    change: list[str], names: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert names in the_sentence(capsys, *change, "--corpus", corpus, "-o", tmp_path / "exp")


@pytest.mark.parametrize("verb", [["run", "asr_demo", "-u", "fbank"], ["cluster", "--upstream", "mfcc"]])
def test_a_folder_that_is_no_corpus_is_named(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = the_sentence(capsys, *verb, "--corpus", tmp_path / "nowhere", "-o", tmp_path / "exp")
    assert str(tmp_path / "nowhere") in line and "prepare" in line


@pytest.mark.parametrize("case", ["missing", "text", "not finite"])
def test_a_bad_file_stops_a_run_and_is_named(
    case: str, asr: list[object], corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = sorted((corpus / "audio").iterdir())[0]
    bad.unlink()
    BAD_AUDIO[case](bad.with_suffix(".wav"))
    if bad.with_suffix(".wav").exists():
        bad.with_suffix(".wav").rename(bad)
    assert bad.name in the_sentence(capsys, *asr)


@pytest.mark.parametrize(
    ("verb", "names"),
    [(["report", "gone"], "gone"), (["export", "./gone"], "./gone"), (["infer", "gone", "a.wav"], "gone")],
)
def test_a_run_or_checkpoint_that_is_not_there_is_named(
    verb: list[str], names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert names in the_sentence(capsys, *verb, "-o", tmp_path / "out")


def test_a_repository_out_of_reach_is_one_sentence(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path / "hub")}
    command = [sys.executable, "-m", "speechssl", "export", "gone/model", "-o", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "'gone/model'" in line
    assert "name a folder" in line
