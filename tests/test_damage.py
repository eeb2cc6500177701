"""Damaged files, outputs in the way and full disks end in one sentence that names the file, and lose nothing."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from command_line import run, the_sentence
from safetensors.torch import load_file

from speechssl.train import loop
from speechssl.train.checkpoint import Checkpoint

Capture = pytest.CaptureFixture[str]
FilesNoLargerThan = Callable[[int], AbstractContextManager[None]]
MODEL = [f"model.{s}" for s in ("width=32", "depth=2", "heads=2", "ffn_width=64", "pos_kernel=7")]
TRAIN = [
    f"train.{s}"
    for s in (
        "batch_seconds=6", "batches_per_step=1", "min_seconds=0.5", "max_seconds=1.2", "log_every=1", "save_every=2",
        "steps=4", "threads=1", "accelerator=cpu", "num_workers=0",
    )
]  # fmt: skip
PRETRAIN = ["pretrain", "hubert_tiny", *MODEL, "objective.final_dim=16", *TRAIN]
ASR = [
    "asr_demo",
    "-u",
    "fbank",
    *(x for s in ("steps=2", "evaluate_every=2", "batch_seconds=6") for x in ("-s", f"train.{s}")),
]
BINARY = bytes(range(256))


@pytest.fixture(scope="module")
def made(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `corpus`, `labels`, `upstream`, a finished run below `exp`, and its `cache`."""
    root = tmp_path_factory.mktemp("made")
    (root / "corpus").symlink_to(tiny_corpus)
    corpus = ["--corpus", root / "corpus"]
    assert run("cluster", "--upstream", "mfcc", *corpus, "--clusters", 8, "-o", root / "labels") == 0
    assert run(*PRETRAIN, *corpus, "--labels", root / "labels", "-o", root / "upstream") == 0
    assert run("run", *ASR, *corpus, "-o", root / "exp", "--cache", root / "cache") == 0
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `made` that may be damaged; the working directory."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    Path("a_file").write_text("not a folder")
    Path("list.json").write_text("[]")
    return tmp_path / "copy"


def damage(path: Path, how: str) -> None:
    """'cut' keeps the first bytes, 'binary' and 'list' hold something else, 'old=new' is a replacement."""
    if how == "cut":
        path.write_bytes(path.read_bytes()[: min(100, path.stat().st_size // 2)])
    elif how == "binary":
        path.write_bytes(BINARY)
    elif how == "list":
        path.write_text("[]")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "gone":
        path.unlink()
    else:
        old, new = how.split("=")
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))


RUN = "exp/asr/fbank/seed0"
EXTRACT = ["extract", "upstream", "corpus", "-o", "out"]
TASK = ["run", *ASR, "--corpus", "corpus", "-o", "out", "--cache", "cache"]
CLUSTER = ["cluster", "--upstream", "mfcc", "--corpus", "corpus", "--clusters", 8, "-o", "labels"]
TRAINING = [*PRETRAIN, "--corpus", "corpus", "--labels", "labels", "-o", "out"]
INFER = ["infer", RUN, "corpus/audio/aa0-00.flac"]

DAMAGED = [
    *[
        (EXTRACT, "upstream/config.json", how)
        for how in ("cut", "binary", "list", "empty", '"config": {="config": 3, "x": {')
    ],
    (EXTRACT, "upstream/config.json", '"width"="widht"'),
    *[(EXTRACT, "upstream/model.safetensors", how) for how in ("cut", "binary", "empty", "gone")],
    (["export", "upstream", "-o", "out"], "upstream/model.safetensors", "cut"),
    *[(TASK, "corpus/corpus.json", how) for how in ("cut", "binary", "list", "empty")],
    *[(TASK, "corpus/manifests/train.jsonl.gz", how) for how in ("cut", "binary", "empty")],
    *[(TRAINING, "labels/labels-train.safetensors", how) for how in ("cut", "binary", "gone")],
    *[(CLUSTER, "labels/config.json", how) for how in ("cut", "list")],
    (CLUSTER, "labels/kmeans.safetensors", "cut"),
    (CLUSTER, "labels/labels-train.safetensors", "cut"),
    *[(INFER, f"{RUN}/task.json", how) for how in ("cut", "binary", "list", "gone")],
    (INFER, f"{RUN}/head.safetensors", "gone"),
    *[(["report", RUN, "-o", "out"], f"{RUN}/result.json", how) for how in ("cut", "binary", "list")],
]


@pytest.mark.parametrize(("command", "file", "how"), DAMAGED)
def test_a_damaged_file_is_named(command: list[object], file: str, how: str, here: Path, capsys: Capture) -> None:
    damage(Path(file), how)
    line = the_sentence(capsys, *command)
    # A mistake inside a file may be told by the folder and the key.
    assert file in line or str(Path(file).parent) in line or "widht" in line


def test_a_damaged_folder_of_features_is_named(here: Path, capsys: Capture) -> None:
    command = ["extract", "fbank", "corpus/audio/aa0-00.flac", "-o", "features"]
    assert run(*command) == 0
    for how in ("cut", "list"):
        damage(here / "features/extract.json", how)
        assert "features/extract.json" in the_sentence(capsys, *command)


@pytest.mark.parametrize(
    "command",
    [
        ["extract", "fbank", "corpus/audio/aa0-00.flac"],
        ["export", "upstream"],
        ["cluster", "--upstream", "mfcc", "--corpus", "corpus", "--clusters", 8],
        [*PRETRAIN, "--corpus", "corpus", "--labels", "labels"],
        ["run", *ASR, "--corpus", "corpus", "--cache", "cache"],
        ["report", "exp"],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("out", ["a_file", "a_file/below"])
def test_an_output_that_is_a_file_is_named_and_stays(
    command: list[object], out: str, here: Path, capsys: Capture
) -> None:
    line = the_sentence(capsys, *command, "-o", out)
    assert "a_file" in line and ("must be a folder" in line or "not a folder" in line)
    assert (here / "a_file").read_text() == "not a folder"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["prepare", "demo", "a_file"], "a_file is a file, but must be a folder"),
        (["prepare", "demo", "out", "--config", "gone.yaml"], "gone.yaml does not exist"),
        (["prepare", "demo", "out", "--config", "list.json"], "list.json must hold a mapping"),
        (["prepare", "demmo", "out"], "'demmo'"),
        (["cache", "--folder", "a_file"], "a_file is a file, but must be a folder"),
        (["run", *ASR, "--corpus", "corpus", "-o", "out", "--cache", "a_file"], "a_file can't be written"),
        (["infer", RUN, "corpus/audio/aa0-00.flac", "-o", "labels"], "labels is a folder"),
        (["infer", RUN, "corpus/audio/aa0-00.flac", "--plot", "labels"], "labels is a folder: name"),
        (["infer", RUN, "corpus/audio/aa0-00.flac", "-o", "a_file/x.json"], "a_file is a file, but must be a folder"),
        (["infer", "a_file", "corpus/audio/aa0-00.flac"], "a_file holds no finished run"),
        (
            ["cluster", "--upstream", "mfcc", "--corpus", "corpus", "--clusters", 0, "-o", "out"],
            "`clusters` must be >= 1",
        ),
        ([*CLUSTER, "--clusters", 9], "config.kmeans.clusters=8, not 9"),
        (["extract", "upstream", "corpus", "-o", "out", "--device", "nonsense"], "device 'nonsense' can't be used"),
        (["infer", RUN, "corpus/audio/aa0-00.flac", "--device", "nonsense"], "device 'nonsense' can't be used"),
    ],
)
def test_what_is_in_the_way_or_not_there_is_named(
    command: list[object], says: str, here: Path, capsys: Capture
) -> None:
    assert says in the_sentence(capsys, *command)


@pytest.mark.parametrize(
    ("text", "says"), [("a: [1,\n b: 2\n", "line 3"), ("- 1\n", "mapping"), ("\x00\x01", "not valid YAML"), ("", "")]
)
def test_a_config_file_that_is_no_mapping_is_named(text: str, says: str, here: Path, capsys: Capture) -> None:
    Path("my.yaml").write_text(text)
    if not says:
        assert run(*TASK, "--config", "my.yaml") == 0  # nothing to change is no mistake
        return
    line = the_sentence(capsys, *TASK, "--config", "my.yaml")
    assert "my.yaml" in line and says in line


@pytest.mark.parametrize(
    ("command", "size", "finished"),
    [
        ([*TASK, "-o", "out"], 20_000, "out/asr/fbank/seed0/result.json"),  # the head does not fit
        ([*TASK, "-o", "out"], 4_000_000, "out/asr/fbank/seed0/result.json"),  # the checkpoint does not fit
        ([*TASK, "-o", "out", "--cache", "new"], 20_000, "out/asr/fbank/seed0/result.json"),
        (TRAINING, 3_000, "out/model.safetensors"),
        ([*CLUSTER[:-1], "out"], 5_000, "out/labels-train.safetensors"),
        (["export", "upstream", "-o", "out"], 3_000, "out/model.safetensors"),
        (["report", "exp", "-o", "out"], 3_000, "out/index.html"),
        ([*INFER, "-o", "out/text.json"], 10, "out/text.json"),
    ],
)
def test_a_full_disk_is_said_and_the_same_command_goes_on_later(  # noqa: PLR0917  pytest calls it by name
    command: list[object],
    size: int,
    finished: str,
    here: Path,
    files_no_larger_than: FilesNoLargerThan,
    capsys: Capture,
) -> None:
    with files_no_larger_than(size):
        line = the_sentence(capsys, *command)
    assert "The disk is full" in line and "run the same command again" in line
    assert not Path(finished).exists()
    assert run(*command) == 0
    assert Path(finished).is_file()


def test_a_disk_that_fills_up_in_mid_training_leaves_the_checkpoints_before(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: Capture
) -> None:
    save = loop.save_checkpoint

    def until_full(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
        if checkpoint.step > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(folder, checkpoint, keep=keep)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", until_full)
        assert "The disk is full" in the_sentence(capsys, *TRAINING)
    with caplog.at_level(logging.INFO):
        assert run(*TRAINING) == 0
    assert "Going on from step 2" in caplog.text
    lines = [json.loads(line) for line in Path("out/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    (whole, resumed) = (load_file(f / "model.safetensors") for f in (Path("upstream"), Path("out")))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
