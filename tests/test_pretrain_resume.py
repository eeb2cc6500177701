"""Checkpoints and exact resumption: whatever happens, and whenever, the continued run is the undisturbed one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from pretraining_runs import FAST, environment, log_of, write_labels
from safetensors.torch import load_file
from torch import nn

from speechssl.errors import SpeechsslError
from speechssl.train import loop
from speechssl.train.checkpoint import Checkpoint, last_checkpoint, pack, save_checkpoint, unpack
from speechssl.train.run import pretrain

VICTIM = str(Path(__file__).with_name("pretrain_victim.py"))
DROPOUT = ("model.dropout=0.1", "model.layerdrop=0.2", "train.save_every=1", "train.keep=1", "train.log_every=3")
FILE_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.listdir", "os.scandir"}


@pytest.fixture(scope="module")
def labels(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labels(tiny_corpus, tmp_path_factory.mktemp("labels"))


def _run(corpus: Path, labels: Path, output: Path, *overrides: str) -> Any:
    return pretrain("hubert_tiny", corpus=corpus, labels=[labels], output=output, overrides=(*FAST, *overrides))


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_the_undisturbed_one(
    tiny_corpus: Path, labels: Path, tmp_path: Path
) -> None:
    _run(tiny_corpus, labels, tmp_path / "whole", *DROPOUT, "train.steps=24")
    words = [sys.executable, VICTIM, str(tiny_corpus), str(labels), str(tmp_path / "killed"), "7"]
    done = subprocess.run(
        [*words, *DROPOUT, "train.steps=24"], env=environment(), capture_output=True, text=True, check=True, timeout=300
    )
    status, killed, inside = map(int, done.stdout.split())
    assert status == 0
    assert killed >= 5
    assert inside >= 1  # while a checkpoint was being written
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    one, two = _weights(tmp_path / "whole"), _weights(tmp_path / "killed")
    assert all(torch.equal(one[key], two[key]) for key in one)


def _save_and_die(folder: Path, step: int, operation: int) -> bool:
    """Saves in a process of its own, which ends without a word at the n-th file operation; True = it got to the end."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event: str, _arguments: object) -> None:
            nonlocal seen
            seen += event in FILE_EVENTS
            if seen == operation:
                os._exit(9)

        sys.addaudithook(count)
        save_checkpoint(folder, Checkpoint(step, {"x": torch.full((99,), float(step))}, {"a": step}), keep=1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_checkpoint_is_there_after_a_death_at_any_file_operation(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "before", Checkpoint(4, {"x": torch.full((99,), 4.0)}, {"a": 4}), keep=1)
    operation, ended, steps = 0, False, []
    while not ended:
        operation += 1
        folder = tmp_path / str(operation)
        shutil.copytree(tmp_path / "before", folder)
        ended = _save_and_die(folder, 6, operation)
        found = last_checkpoint(folder)
        assert found is not None
        assert found.tensors["x"].tolist() == [float(found.step)] * 99
        assert found.state == {"a": found.step}
        steps.append(found.step)
        save_checkpoint(folder, Checkpoint(8, {"x": torch.zeros(1)}, {}), keep=1)  # and what was left is cleared away
        assert [p.name for p in folder.iterdir()] == ["step-00000008"]
    assert operation > 10
    assert steps == sorted(steps)
    assert set(steps) == {4, 6}


def test_a_bit_that_has_flipped_on_the_disk_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (2, 4):
        save_checkpoint(tmp_path, Checkpoint(step, {"x": torch.full((3,), float(step))}, {}), keep=2)
    path = tmp_path / "step-00000004" / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    found = last_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 2
    assert "checksum" in caplog.text
    save_checkpoint(tmp_path, Checkpoint(4, {"x": torch.full((3,), 4.0)}, {}), keep=2)  # takes the damaged one's place
    again = last_checkpoint(tmp_path)
    assert again is not None
    assert again.tensors["x"].tolist() == [4.0] * 3


def test_a_full_disk_costs_nothing_that_was_saved_and_the_run_goes_on(
    tiny_corpus: Path,
    labels: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    files_no_larger_than: Callable[[int], AbstractContextManager[None]],
) -> None:
    _run(tiny_corpus, labels, tmp_path / "whole")
    save = loop.save_checkpoint

    def without_room(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
        if checkpoint.step not in full:
            return save(folder, checkpoint, keep=keep)
        with files_no_larger_than(10_000):
            return save(folder, checkpoint, keep=keep)

    full = {4, 8}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="File too large"):
        patch.setattr(loop, "save_checkpoint", without_room)
        _run(tiny_corpus, labels, tmp_path / "full")
    assert "no checkpoint of step 4" in caplog.text
    assert [p.name for p in sorted((tmp_path / "full" / "checkpoints").iterdir())] == ["step-00000002", "step-00000006"]
    _run(tiny_corpus, labels, tmp_path / "full")
    assert log_of(tmp_path / "full") == log_of(tmp_path / "whole")
    one, two = _weights(tmp_path / "whole"), _weights(tmp_path / "full")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_checkpoint_of_another_model_says_so() -> None:
    one, other = nn.Linear(3, 2), nn.Linear(4, 2)
    tensors = pack(one, torch.optim.AdamW(one.parameters()))
    with pytest.raises(SpeechsslError, match=r"another model .*size mismatch for weight"):
        unpack(tensors, other, torch.optim.AdamW(other.parameters()))


def test_an_output_folder_that_can_not_be_written_is_named_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpeechsslError, match=r"file is a file, but must be a folder"):
        pretrain("hubert_tiny", corpus=tmp_path / "nowhere", output=tmp_path / "file" / "run")
