"""The output formats: read back by the tools that own them, resumed after interruptions, long files in pieces."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import soundfile
from command_line import run, the_sentence
from numpy.typing import NDArray
from safetensors.numpy import load_file

from speechssl.audio import read_audio
from speechssl.extraction import extract, resolve_items
from speechssl.feature_extraction import Summary, write_features
from speechssl.feature_files import FeatureFolder
from speechssl.loading import load_upstream
from speechssl.upstream import Upstream

Arrays = dict[str, dict[int, NDArray[np.float32]]]
FORMATS = ("safetensors", "npy", "kaldi", "webdataset")
SHARDED = ("kaldi", "webdataset")
LAYERS = (0, 3)


@pytest.fixture(scope="module")
def upstream() -> Upstream:
    return load_upstream("hubert_tiny", random_weights=0)


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Seven files of 0.4 to 1.6 s in a folder with a sub-folder; one name has a dot."""
    folder, rng = tmp_path / "recordings", np.random.default_rng(0)
    (folder / "sub").mkdir(parents=True)
    for index, name in enumerate(("a", "b", "c.1", "d", "sub/a", "sub/e", "sub/f")):
        rate, channels = (44_100, 2) if index == 1 else (16_000, 1)
        samples = rng.uniform(-0.3, 0.3, (rate * (4 + 2 * index) // 10, channels))
        soundfile.write(folder / f"{name}.wav", samples, rate)
    return folder


def read_safetensors(out: Path) -> Arrays:
    return {r["id"]: {int(k[6:]): v for k, v in load_file(out / r["file"]).items()} for r in index(out)}


def read_npy(out: Path) -> Arrays:
    found: Arrays = {}
    for row in index(out):
        array = np.load(out / str(row["file"]))
        found[str(row["id"])] = dict(zip(row["layers"], array[None] if array.ndim == 2 else array, strict=True))
    return found


def read_kaldi(out: Path) -> Arrays:
    kaldiio = pytest.importorskip("kaldiio")
    found: Arrays = {}
    for folder in out.glob("layer_*"):
        for name, array in kaldiio.load_scp(str(folder / "feats.scp")).items():
            found.setdefault(name, {})[int(folder.name[6:])] = array
    return found


def read_webdataset(out: Path) -> Arrays:
    webdataset = pytest.importorskip("webdataset")
    shards = sorted(str(p) for p in out.glob("*.tar"))
    found: Arrays = {}
    for sample in webdataset.WebDataset(shards, shardshuffle=False).decode():
        name = sample["json"]["id"]
        assert name not in found
        found[name] = {k: sample[f"layer_{k}.npy"] for k in sample["json"]["layers"]}
    return found


READ = {"safetensors": read_safetensors, "npy": read_npy, "kaldi": read_kaldi, "webdataset": read_webdataset}


def index(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def write(
    upstream: Upstream, recordings: Path, out: Path, form: str, *, shard_bytes: int = 1 << 40, skip_bad: bool = False
) -> Summary:
    folder = FeatureFolder(
        out, upstream=upstream, layers=LAYERS, format=form, precision="float32", shard_bytes=shard_bytes
    )
    return write_features(upstream, [str(recordings)], folder, batch_seconds=5.0, workers=1, skip_bad=skip_bad)


def assert_right(
    upstream: Upstream, recordings: Path, found: Arrays, *, layers: tuple[int, ...] = LAYERS, atol: float = 1e-5
) -> None:
    exact = {u.id: f for u, f in extract(upstream, recordings, layers=layers)}
    assert set(found) == set(exact)
    for name, arrays in found.items():
        assert set(arrays) == set(layers)
        for layer, array in arrays.items():
            assert array.dtype == np.float32
            np.testing.assert_allclose(array, exact[name][layer].numpy(), atol=atol)


def shards(out: Path) -> dict[Path, int]:
    """The files that utterances share, with what says whether they were written again."""
    return {p: p.stat().st_ino for p in [*out.rglob("*.ark"), *out.rglob("*.tar")]}


@pytest.mark.parametrize("form", FORMATS)
def test_each_format_is_read_back_by_its_own_tools(
    upstream: Upstream, recordings: Path, tmp_path: Path, form: str
) -> None:
    summary = write(upstream, recordings, tmp_path / "out", form, shard_bytes=100_000)
    assert summary.computed.utterances == 7
    assert_right(upstream, recordings, READ[form](tmp_path / "out"))
    assert [r["id"] for r in index(tmp_path / "out")] == [u.id for u in resolve_items(recordings)]
    if form in SHARDED:
        assert len({r["file"] for r in index(tmp_path / "out")}) > 1
    assert not list((tmp_path / "out").rglob("*.partial"))


@pytest.mark.parametrize("form", SHARDED)
def test_the_index_says_where_an_utterance_lies(
    upstream: Upstream, recordings: Path, tmp_path: Path, form: str
) -> None:
    out = tmp_path / "out"
    write(upstream, recordings, out, form, shard_bytes=100_000)
    exact = READ[form](out)
    for row in index(out):
        for position, layer in enumerate(LAYERS if form == "kaldi" else LAYERS[:1]):
            first, size = row["spans"][position]
            data = (out / row["file"].format(layer=layer)).read_bytes()[first : first + size]
            assert exact[row["id"]][layer].tobytes() in data


def test_scp_is_sorted_by_bytes_and_names_files_wherever_it_is_read_from(
    upstream: Upstream, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (recordings / "d.wav").rename(recordings / "Z ü.wav")
    monkeypatch.chdir(tmp_path)
    write(upstream, Path("recordings"), Path("out"), "kaldi")
    keys = [line.split()[0] for line in (tmp_path / "out/layer_3/feats.scp").read_text().splitlines()]
    assert keys == sorted(keys, key=str.encode) and "Z_ü" in keys
    monkeypatch.chdir("/")
    assert set(read_kaldi(tmp_path / "out")) == set(keys)


def test_tar_shards_carry_text_labels_and_names_with_dots(
    upstream: Upstream, tiny_corpus: Path, tmp_path: Path
) -> None:
    webdataset = pytest.importorskip("webdataset")
    manifest = tiny_corpus / "manifests" / "dev.jsonl.gz"
    write(upstream, manifest, tmp_path / "out", "webdataset", shard_bytes=300_000)
    utterances = {u.id: u for u in resolve_items(manifest)}
    paths = sorted(str(p) for p in (tmp_path / "out").glob("*.tar"))
    assert len(paths) > 1
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode())
    assert {s["json"]["id"] for s in samples} == set(utterances)
    for sample in samples:
        labels = utterances[sample["json"]["id"]].labels
        assert sample["txt"] == labels["text"] and sample["json"]["speaker"] == labels["speaker"]
    for path in paths:
        with tarfile.open(path) as archive:  # also for Python's own reader
            assert len(archive.getmembers()) % 4 == 0


@pytest.mark.parametrize(("form", "names"), [("kaldi", ("x y", "x_y")), ("webdataset", ("x.y", "x_y"))])
def test_names_that_would_come_to_one_key_are_refused_before_the_work(
    form: str, names: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in names:
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(8000), 16_000)
    line = the_sentence(capsys, "extract", "fbank", f"{tmp_path}/x*.wav", "-o", tmp_path / "out", "--format", form)
    assert all(f"'{name}'" in line for name in names)


@pytest.mark.parametrize("form", SHARDED)
def test_what_no_line_of_the_index_accounts_for_does_not_count(
    upstream: Upstream, recordings: Path, tmp_path: Path, form: str
) -> None:
    out = tmp_path / "out"
    write(upstream, recordings, out, form, shard_bytes=100_000)
    rows, before = index(out), shards(out)
    files = list(dict.fromkeys(str(r["file"]) for r in rows))
    assert len(files) >= 3
    kept = [r for r in rows if r["file"] == files[0]]
    half = [r for r in rows if r["file"] == files[1]]
    assert len(half) > 1  # of the second shard one line is lost, as where the index was torn; of the others all
    (out / "index.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*kept, *half[:-1]]))
    summary = write(upstream, recordings, out, form, shard_bytes=100_000)
    assert summary.kept.utterances == len(kept)
    assert_right(upstream, recordings, READ[form](out))
    names = [files[0].format(layer=k) for k in LAYERS]
    assert all(shards(out)[out / name] == before[out / name] for name in names)


@pytest.mark.parametrize("form", SHARDED)
def test_a_shard_that_was_cut_is_made_again(upstream: Upstream, recordings: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    write(upstream, recordings, out, form, shard_bytes=100_000)
    victim = sorted(shards(out))[0]
    os.truncate(victim, victim.stat().st_size - 1)
    lost = sum(victim in [out / str(r["file"]).format(layer=k) for k in LAYERS] for r in index(out))
    assert write(upstream, recordings, out, form, shard_bytes=100_000).computed.utterances == lost > 0
    assert_right(upstream, recordings, READ[form](out))


@pytest.mark.parametrize("form", FORMATS)
def test_a_changed_file_is_replaced_and_its_neighbours_are_not_computed_again(
    upstream: Upstream, recordings: Path, tmp_path: Path, form: str
) -> None:
    out = tmp_path / "out"
    write(upstream, recordings, out, form)
    soundfile.write(recordings / "a.wav", np.random.default_rng(9).uniform(-0.3, 0.3, 9000), 16_000)
    summary = write(upstream, recordings, out, form)
    assert (summary.computed.utterances, summary.kept.utterances) == (1, 6)
    assert_right(upstream, recordings, READ[form](out))
    (recordings / "a.wav").write_bytes(b"")
    assert set(write(upstream, recordings, out, form, skip_bad=True).bad) == {"a"}
    (recordings / "a.wav").unlink()
    assert_right(upstream, recordings, READ[form](out))


SLOWLY = """
import sys, time
import speechssl.feature_extraction as work
from speechssl.cli import main
fast = work.extract
def slow(*args, **kwargs):
    for found in fast(*args, **kwargs):
        yield found
        time.sleep(0.3)
work.extract = slow
main(sys.argv[1:])
"""


@pytest.mark.parametrize("form", FORMATS)
def test_a_kill_in_the_middle_leaves_only_what_is_whole(recordings: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    argv = ["extract", "fbank_no_cmvn", recordings, "-o", out, "--format", form]
    argv += ["--shard-size", "1", "--batch-seconds", "0.1"]
    rng = np.random.default_rng(3)
    for number in range(8):
        soundfile.write(recordings / f"long{number}.wav", rng.uniform(-0.3, 0.3, 16_000 * (6 + number)), 16_000)
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, *map(str, argv)])
    try:
        deadline = time.monotonic() + 120
        while not ((out / "index.jsonl").exists() and index(out) and in_the_middle(out, form)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = index(out)
    before = {p: p.stat().st_ino for p in (out / str(r["file"]).format(layer=0) for r in done)}
    assert 0 < len(done) < 15
    assert run(*argv) == 0
    assert all(p.stat().st_ino == inode for p, inode in before.items())  # not written again
    assert not list(out.rglob("*.partial"))
    assert_right(load_upstream("fbank_no_cmvn"), recordings, READ[form](out), layers=(0,), atol=1e-4)


def in_the_middle(out: Path, form: str) -> bool:
    """Whether a file that utterances share is half written; the others are too soon whole to be met so."""
    return form not in SHARDED or bool(list(out.rglob("*.partial")))


def test_two_processes_do_not_write_to_one_folder(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = ["extract", "fbank", recordings, "-o", out]
    holding = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); "
        "input()"
    )
    out.mkdir()
    command = [sys.executable, "-c", holding, str(out / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert "Another process is writing to" in the_sentence(capsys, *argv)
        other.kill()
    assert run(*argv) == 0


@pytest.mark.parametrize("form", SHARDED)
def test_a_full_disk_keeps_the_utterances_before(
    recordings: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    files_no_larger_than: Callable[[int], AbstractContextManager[None]],
    form: str,
) -> None:
    out = tmp_path / "out"
    argv = ("extract", "fbank", recordings, "-o", out, "--format", form)
    with files_no_larger_than(400_000):  # of some 700 000
        assert "The disk is full" in the_sentence(capsys, *argv)
    rows = index(out)
    assert 0 < len(rows) < 7 and not list(out.rglob("*.partial"))
    assert run(*argv) == 0
    counts = Counter(str(r["id"]) for r in index(out))
    assert len(counts) == 7 and set(counts.values()) == {1}
    assert len(READ[form](out)) == 7


@pytest.mark.parametrize("form", FORMATS)
def test_long_files_are_written_in_pieces(recordings: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    argv = ("extract", "fbank_no_cmvn", recordings, "-o", out, "--format", form, "--chunk", "0.8", "--context", "0.2")
    assert run(*argv) == 0
    exact = {u.id: f for u, f in extract(load_upstream("fbank_no_cmvn"), recordings)}
    found = READ[form](out)
    assert set(found) == set(exact)
    for name, arrays in found.items():
        tolerance = 1e-3 if name == "b" else 1e-5  # b is resampled, and the logarithm magnifies that where it is quiet
        np.testing.assert_allclose(arrays[0], exact[name][0].numpy(), atol=tolerance)
    before = {p: p.stat().st_ino for p in out.rglob("*") if p.suffix in (".safetensors", ".npy", ".ark", ".tar")}
    assert run(*argv) == 0 and all(p.stat().st_ino == inode for p, inode in before.items())


def test_features_of_chunks_are_not_mixed_with_others(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("extract", "fbank", recordings, "-o", tmp_path / "out")
    assert "`chunk` must be at least" in the_sentence(capsys, *argv, "--chunk", 0.01)  # and claims no folder
    assert run(*argv, "--chunk", 1) == 0
    assert "choose another folder" in the_sentence(capsys, *argv)
    assert "choose another folder" in the_sentence(capsys, *argv, "--chunk", 1, "--context", 2)


@pytest.mark.parametrize("form", FORMATS)
def test_a_long_file_that_goes_bad_in_the_middle_leaves_nothing(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    out = tmp_path / "out"
    samples = read_audio(recordings / "sub/f.wav").numpy().copy()
    samples[15_000] = np.nan
    soundfile.write(recordings / "sub/f.wav", samples, 16_000, subtype="FLOAT")
    argv = ("extract", "fbank_no_cmvn", recordings, "-o", out, "--format", form, "--chunk", "0.5", "--context", "0.1")
    assert "f.wav holds 1 samples that are NaN" in the_sentence(capsys, *argv)
    assert run(*argv, "--skip-bad") == 0
    assert len(index(out)) == 6 and "sub/f" in (out / "bad.tsv").read_text()
    assert not list(out.rglob("*.partial")) and not list(out.rglob("f.*[zy]"))
    assert len(READ[form](out)) == 6
