"""Extraction: the right numbers in any batch, every kind of input, and files that survive interruptions."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch import Tensor

import speechssl
from speechssl.audio import read_audio
from speechssl.cli import main
from speechssl.errors import AudioError, ManifestError
from speechssl.extraction import extract, resolve_items
from speechssl.loading import load_upstream
from speechssl.types import Utterance
from speechssl.upstream import Upstream


@pytest.fixture(scope="module")
def upstream() -> Upstream:
    return load_upstream("hubert_tiny", random_weights=0)


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Six files of different lengths, formats, rates and channels in a folder with a sub-folder."""
    folder, rng = tmp_path / "recordings", np.random.default_rng(0)
    (folder / "sub").mkdir(parents=True)
    kinds = [("a.wav", 16_000, 1), ("b.flac", 44_100, 2), ("c.ogg", 22_050, 1), ("sub/a.wav", 8_000, 1)]
    for i, (name, rate, channels) in enumerate([*kinds, ("sub/d.mp3", 48_000, 2), ("sub/e.aiff", 11_025, 1)]):
        soundfile.write(folder / name, rng.uniform(-0.3, 0.3, (rate * (4 + 3 * i) // 10, channels)), rate)
    (folder / "notes.txt").write_text("not audio")
    return folder


def run(*argv: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    return int(stop.value.code or 0)


def test_extraction_equals_one_file_at_a_time(upstream: Upstream, recordings: Path) -> None:
    found = {u.id: (u, f) for u, f in extract(upstream, recordings, batch_seconds=5.0)}
    assert set(found) == {"a", "b", "c", "sub/a", "sub/d", "sub/e"}
    for utterance, features in found.values():
        waveform = read_audio(utterance.path, sample_rate=upstream.sample_rate)[None]
        with torch.no_grad():
            alone = upstream(waveform)
        for layer in range(len(upstream.hidden_sizes)):
            assert features[layer].shape == alone.hidden_states[layer][0].shape
            torch.testing.assert_close(features[layer], alone.hidden_states[layer][0], atol=1e-5, rtol=1e-4)


def test_the_public_name_takes_paths_and_layers(upstream: Upstream, recordings: Path) -> None:
    paths = [str(recordings / "a.wav"), recordings / "b.flac"]
    for utterance, features in speechssl.extract(upstream, paths, layers=[2]):
        assert features.layers == (2,) and features[2].dtype == torch.float32
        assert utterance.id in ("a", "b") and not features[2].is_inference()


def test_order_is_longest_first_or_that_of_the_input(upstream: Upstream, recordings: Path) -> None:
    frames = [f[0].size(0) for _, f in extract(upstream, recordings, layers=[0], batch_seconds=0.1)]
    assert frames == sorted(frames, reverse=True)
    names = [u.id for u, _ in extract(upstream, recordings, layers=[0], batch_seconds=3.0, in_order=True)]
    assert names == [u.id for u in resolve_items(recordings)]


def test_no_batch_is_larger_than_asked_for(recordings: Path) -> None:
    sizes: list[tuple[int, int]] = []

    class Watched(Upstream):
        def output_lengths(self, lengths: Tensor) -> Tensor:
            return lengths // 160

        def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
            sizes.append((waveform.size(0), waveform.size(1)))
            return {k: waveform.new_zeros(waveform.size(0), waveform.size(1) // 160, 1) for k in layers}

        def fingerprint_config(self) -> str:
            return ""

    watched = Watched(sample_rate=16_000, frame_rate=100.0, hidden_sizes=(1,))
    watched.name = "watched"
    assert len(list(extract(watched, recordings, batch_seconds=2.5))) == 6
    assert max(batch * samples for batch, samples in sizes) <= 2.5 * 16_000 + 10
    assert max(batch for batch, _ in sizes) > 1


def test_training_mode_is_restored(upstream: Upstream, recordings: Path) -> None:
    upstream.train()
    try:
        first = {u.id: f[-1] for u, f in extract(upstream, recordings)}
        second = {u.id: f[-1] for u, f in extract(upstream, recordings)}
        assert upstream.training
    finally:
        upstream.eval()
    assert all(torch.equal(first[i], second[i]) for i in first)  # no dropout


def test_bf16_is_close(upstream: Upstream, recordings: Path) -> None:
    exact = {u.id: f[-1] for u, f in extract(upstream, recordings)}
    for utterance, features in extract(upstream, recordings, precision="bf16"):
        error = (features[-1] - exact[utterance.id]).norm() / exact[utterance.id].norm()
        assert 0 < float(error) < 0.05


def test_a_corpus_its_manifests_and_globs_are_inputs(tiny_corpus: Path, recordings: Path) -> None:
    whole = resolve_items(tiny_corpus)
    assert len(whole) == 82 and all(Path(u.path).is_file() for u in whole)
    dev = resolve_items(str(tiny_corpus / "manifests" / "dev.jsonl.gz"))
    assert {u.id for u in dev} < {u.id for u in whole} and all(Path(u.path).is_file() for u in dev)
    assert [u.id for u in resolve_items(f"{recordings}/*.flac")] == ["b"]


def test_names_that_clash_become_paths_and_repeats_are_dropped(recordings: Path) -> None:
    paths = [recordings / "a.wav", recordings / "sub" / "a.wav", recordings / "a.wav"]
    first, second = resolve_items(paths)
    assert first.id.endswith("recordings/a.wav") and second.id.endswith("recordings/sub/a.wav")


@pytest.mark.parametrize("item", ["missing/*.wav", "."])
def test_nothing_found_is_an_error(item: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AudioError):
        resolve_items(item)


def test_one_id_for_two_utterances_is_an_error() -> None:
    with pytest.raises(ManifestError, match="'x'"):
        resolve_items([Utterance("x", "a.wav"), Utterance("x", "b.wav")])


def index(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def test_safetensors_and_npy_hold_the_same(upstream: Upstream, recordings: Path, tmp_path: Path) -> None:
    how = ("--random-weights", 0, "--layers", "1,-1")
    assert run("extract", "hubert_tiny", recordings, "-o", tmp_path / "s", *how) == 0
    assert run("extract", "hubert_tiny", recordings, "-o", tmp_path / "n", "--format", "npy", *how) == 0
    assert [r["id"] for r in index(tmp_path / "s")] == [u.id for u in resolve_items(recordings)]
    exact = {u.id: f for u, f in extract(upstream, recordings, layers=[1, -1])}
    last = len(upstream.hidden_sizes) - 1
    for row in index(tmp_path / "s"):
        tensors = load_file(tmp_path / "s" / str(row["file"]))
        array = torch.from_numpy(np.load(tmp_path / "n" / f"{row['id']}.npy"))
        assert set(tensors) == {"layer_1", f"layer_{last}"} and row["layers"] == [1, last]
        assert row["frames"] == array.size(1) and row["frame_rate"] == upstream.frame_rate
        torch.testing.assert_close(array, torch.stack([tensors["layer_1"], tensors[f"layer_{last}"]]))
        torch.testing.assert_close(tensors["layer_1"], exact[str(row["id"])][1], atol=1e-5, rtol=1e-4)


def test_a_second_run_computes_only_what_is_missing(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("extract", "fbank", recordings, "-o", out) == 0
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    (out / "b.safetensors").unlink()
    soundfile.write(recordings / "a.wav", np.random.default_rng(1).uniform(-0.3, 0.3, 9000), 16_000)
    with (out / "index.jsonl").open("a") as file:
        file.write('{"id": "to')  # torn by an interruption
    assert run("extract", "fbank", recordings, "-o", out) == 0
    after = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    changed = {p.name for p in after if before.get(p) != after[p]}
    assert changed == {"b.safetensors", "a.safetensors"} and len(after) == 6 and len(index(out)) == 6
    assert before[out / "sub" / "a.safetensors"] == after[out / "sub" / "a.safetensors"]


def test_a_folder_of_another_kind_is_not_mixed(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("extract", "fbank", recordings, "-o", tmp_path / "out") == 0
    capsys.readouterr()
    assert run("extract", "mfcc", recordings, "-o", tmp_path / "out") == 1
    assert "choose another folder" in capsys.readouterr().err


def test_bad_files_are_skipped_only_when_asked_and_listed(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recordings / "text.wav").write_text("words\n" * 50)
    soundfile.write(recordings / "short.wav", np.zeros(50), 16_000)
    assert run("extract", "fbank", recordings, "-o", tmp_path / "out") == 1
    assert "text.wav" in capsys.readouterr().err
    assert run("extract", "fbank", recordings, "-o", tmp_path / "out", "--skip-bad") == 0
    listed = dict(line.split("\t") for line in (tmp_path / "out" / "bad.tsv").read_text().splitlines()[1:])
    assert set(listed) == {"text", "short"} and "shorter than one frame" in listed["short"]
    assert len(index(tmp_path / "out")) == 6


def test_a_full_disk_keeps_what_was_finished(
    recordings: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    files_no_larger_than: Callable[[int], AbstractContextManager[None]],
) -> None:
    out = tmp_path / "out"
    sizes = {u.id: f[0].numel() * 4 for u, f in extract(load_upstream("fbank"), recordings)}
    shorter = [recordings / n for n in ("a.wav", "b.flac", "c.ogg")]
    with files_no_larger_than(sorted(sizes.values())[2] + 1000):  # the longer half does not fit
        assert run("extract", "fbank", *shorter, "-o", out) == 0
        capsys.readouterr()
        assert run("extract", "fbank", recordings, "-o", out) == 1
    err = capsys.readouterr().err
    assert "The disk is full" in err.strip().splitlines()[-1] and "Traceback" not in err
    assert len(index(out)) == 3 and not list(out.rglob("*.partial"))
    assert run("extract", "fbank", recordings, "-o", out) == 0
    assert len(index(out)) == 6
    for row in index(out):
        assert load_file(out / str(row["file"]))["layer_0"].size(0) == row["frames"]
