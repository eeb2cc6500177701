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


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_lists_name_one_path_per_line_with_or_without_an_id(recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(recordings.parent)
    for name in ("files.txt", "files.lst"):
        items = write_lines(recordings / name, "b.flac", "", f"x y\t{recordings / 'a.wav'}", "recordings/sub/d.mp3")
        found = {u.id: Path(u.path) for u in resolve_items(items)}
        assert list(found) == ["b", "x y", "d"] and all(path.is_file() for path in found.values())


def test_wav_scp_comes_with_segments_text_and_speakers(upstream: Upstream, recordings: Path) -> None:
    scp = write_lines(recordings / "wav.scp", "r1 a.wav", f"r2 {recordings / 'b.flac'}", "r3 sub/e.aiff")
    write_lines(recordings / "utt2spk", "r1 anna", "u1 ben")
    assert resolve_items(scp)[0] == Utterance("r1", str(recordings / "a.wav"), labels={"speaker": "anna"})
    write_lines(recordings / "segments", "u1 r2 0.1 0.5", "u2 r3 0.25 -1")
    write_lines(recordings / "text", "u1 two words", "u2")
    found = resolve_items(recordings)  # the folder is one of Kaldi's, by its wav.scp
    assert [(u.id, u.start, u.duration) for u in found] == [("u1", 0.1, 0.4), ("u2", 0.25, None)]
    assert [u.labels for u in found] == [{"text": "two words", "speaker": "ben"}, {"text": ""}]
    frames = {u.id: f[0].size(0) for u, f in extract(upstream, found, layers=[0])}
    exact = {u.id: round((u.duration or 1.65) * 50) for u in found}
    assert all(abs(frames[i] - exact[i]) <= 2 for i in exact)


def test_recordings_are_utterances_or_hold_those_of_their_supervisions(recordings: Path) -> None:
    from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet

    held = [Recording.from_file(recordings / name) for name in ("a.wav", "b.flac", "c.ogg")]
    manifest = recordings / "tones_recordings_all.jsonl.gz"
    RecordingSet.from_recordings(held).to_file(manifest)
    assert [(u.id, u.path) for u in resolve_items(manifest)] == [(r.id, r.sources[0].source) for r in held]
    segments = [
        SupervisionSegment(id=f"s{n}", recording_id=r, start=0.1 * n, duration=0.2, text=f"word {n}", speaker="anna")
        for n, r in enumerate(("b", "a", "b"))
    ]
    SupervisionSet.from_segments(segments).to_file(recordings / "tones_supervisions_all.jsonl.gz")
    found = resolve_items(manifest)
    assert [u.id for u in found] == ["s1", "s0", "s2"]  # in the order of the recordings; c has none, and is left out
    assert found[2].start == 0.2 and found[2].duration == 0.2
    assert found[2].labels == {"text": "word 2", "speaker": "anna"} and found[2].path.endswith("b.flac")


SOURCE = '"sources": [{"type": "%s", "source": "%s"}], "duration": 1'
BAD_LINES: dict[str, tuple[str, list[str], str]] = {
    "a command": ("wav.scp", ["r1 a.wav", "r2 sox b.flac -t wav - |"], "line 2, is a command"),
    "a command in a list": ("l.txt", ["x\tcat a.wav |"], "line 1, is a command"),
    "an archive": ("wav.scp", ["r1 wav.ark:17"], "line 1, points into an archive"),
    "no path": ("wav.scp", ["r1 a.wav", "", "r2"], "line 3, must be an id and a path"),
    "an id twice": ("wav.scp", ["r1 a.wav", "r1 b.flac"], "line 2, has the id 'r1' for the second time"),
    "two tabs": ("l.lst", ["a.wav", "x\ty\tb.flac"], "line 2, must be a path, or an id, one tab and a path"),
    "no id": ("l.lst", ["\tb.flac"], "line 1, must be a path, or an id"),
    "an empty list": ("l.txt", [""], "is empty"),
    "binary": ("l.txt", ["a.wav", "\0\0"], "line 2, is not text"),
    "no JSON": ("m.jsonl", ['{"id": "x", ' + SOURCE % ("file", "a.wav") + "}", "{"], "line 2, is not of a whole"),
    "no object": ("m.jsonl", ["7"], "line 1, is not of a whole Lhotse manifest (it is no JSON object)"),
    "audio of a command": ("m.jsonl", ['{"id": "x", ' + SOURCE % ("command", "cat a.wav") + "}"], "of type 'command'"),
    "supervisions": ("m.jsonl", ['{"id": "s", "recording_id": "r", "start": 0, "duration": 1}'], "holds supervisions"),
    "a mixed cut": ("m.jsonl", ['{"id": "x", "tracks": []}'], "holds a mixed cut"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named_by_file_and_number(case: str, recordings: Path) -> None:
    name, lines, says = BAD_LINES[case]
    path = write_lines(recordings / name, *lines)
    with pytest.raises(ManifestError) as caught:
        resolve_items(path)
    assert str(path) in str(caught.value) and says in str(caught.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("u r1 0.5", "must be an utterance, a recording, a start and an end"),
        ("u r1 zero 1", "must be an utterance, a recording, a start and an end"),
        ("u r9 0 1", "names the recording 'r9'"),
        ("u r1 1 0.5", "must end after it starts"),
    ],
)
def test_a_bad_segment_is_named_by_file_and_number(line: str, says: str, recordings: Path) -> None:
    write_lines(recordings / "wav.scp", "r1 a.wav")
    segments = write_lines(recordings / "segments", "u0 r1 0 0.3", line)
    with pytest.raises(ManifestError) as caught:
        resolve_items(recordings / "wav.scp")
    assert f"{segments}, line 2, {says}" in str(caught.value)


def test_nothing_that_a_list_says_is_run(recordings: Path) -> None:
    mark = recordings / "ran"
    for name, line in (("wav.scp", f"r touch {mark} |"), ("l.txt", f"touch {mark} |"), ("k.lst", f"|touch {mark}")):
        with pytest.raises(ManifestError, match="command"):
            resolve_items(write_lines(recordings / name, line))
    assert not mark.exists()


def test_supervisions_of_an_unknown_recording_are_an_error(recordings: Path) -> None:
    manifest = write_lines(recordings / "recordings.jsonl", '{"id": "r", ' + SOURCE % ("file", "a.wav") + "}")
    write_lines(recordings / "supervisions.jsonl", '{"id": "s", "recording_id": "q", "start": 0, "duration": 1}')
    with pytest.raises(ManifestError, match="lacks the recording 'q' of the supervision 's'"):
        resolve_items(manifest)


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
