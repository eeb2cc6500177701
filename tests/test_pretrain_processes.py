"""Several processes: strategies, stops and restarts under torchrun."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pretraining_runs import LAUNCHER, command, complete, environment, log_of, two_processes, write_labels
from safetensors.torch import load_file

from speechssl.train.checkpoint import last_checkpoint, list_checkpoints

TOYS = str(Path(__file__).with_name("pretrain_toys.py"))
EXACT = ("train.precision=float32", "model.layerdrop=0.3", "model.dropout=0.1")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def labels(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labels(tiny_corpus, tmp_path_factory.mktemp("labels"))


def _difference(one: Path, two: Path) -> float:
    """Between all tensors of the last checkpoints: weights, buffers and optimiser state."""
    first, second = (load_file(list_checkpoints(f / "checkpoints")[-1] / "tensors.safetensors") for f in (one, two))
    assert first.keys() == second.keys()
    assert all(first[k].shape == second[k].shape for k in first)
    return max(float((first[k].float() - second[k].float()).abs().max()) for k in first if not k.startswith("window."))


def _pids(parent: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], *, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_give_the_weights_of_two_accumulated_batches(
    strategy: str, tiny_corpus: Path, labels: Path, tmp_path: Path
) -> None:
    settings = (*EXACT, "train.steps=4", "train.clip_norm=0.5")
    complete(command(tiny_corpus, labels, tmp_path / "one", *settings))
    complete(two_processes(tiny_corpus, labels, tmp_path / "two", *settings, f"train.strategy={strategy}"))
    assert _difference(tmp_path / "one", tmp_path / "two") <= 1e-5
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert max(float((one[k].float() - two[k].float()).abs().max()) for k in one) <= 1e-5
    for left, right in zip(log_of(tmp_path / "one"), log_of(tmp_path / "two"), strict=True):
        assert left == pytest.approx(right, abs=1e-3)  # among them the norm of gradients that lie in shards
    assert all(line["grad_norm"] > 0.5 for line in log_of(tmp_path / "two"))  # they were clipped


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_teachers_and_codebooks_are_the_same_in_two_processes(
    strategy: str, tiny_corpus: Path, labels: Path, tmp_path: Path
) -> None:
    """The teacher follows the student in `end_step`, and what `begin_run` fits is fitted on the same micro-batches."""
    settings = (*EXACT, "train.steps=5", "train.save_every=2")
    place = [str(tiny_corpus), str(labels)]
    (tmp_path / "notes").mkdir()
    for name, launcher in (("one", [sys.executable]), ("two", [*LAUNCHER])):
        words = [*launcher, TOYS, *place, str(tmp_path / name), *settings, f"train.strategy={strategy}"]
        complete(words, NOTES=str(tmp_path / "notes"))
    notes = [note.read_text() for note in (tmp_path / "notes").iterdir()]
    assert len(notes) == 3
    assert len(set(notes)) == 1
    assert _difference(tmp_path / "one", tmp_path / "two") <= 1e-5
    tensors = load_file(list_checkpoints(tmp_path / "two" / "checkpoints")[-1] / "tensors.safetensors")
    teacher = tensors["model.teacher.module.blocks.0.fc1.weight"]
    assert not torch.equal(teacher, tensors["model.upstream.encoder.blocks.0.fc1.weight"])
    assert tensors["model.frames_seen"] > 100


@pytest.mark.parametrize("order", [("fsdp", "one"), ("ddp", "fsdp")])
def test_a_checkpoint_goes_on_with_another_strategy_or_number_of_processes(
    order: tuple[str, str], tiny_corpus: Path, labels: Path, tmp_path: Path
) -> None:
    settings = (*EXACT, "train.batches_per_step=2")

    def part(strategy: str, output: Path, *more: str) -> list[str]:
        if strategy == "one":
            return command(tiny_corpus, labels, output, *settings, *more)
        return two_processes(tiny_corpus, labels, output, *settings, f"train.strategy={strategy}", *more)

    complete(part("one", tmp_path / "whole"))
    process = _start(part(order[0], tmp_path / "parts", "train.keep=9"))
    process.communicate(timeout=180)
    for later in list_checkpoints(tmp_path / "parts" / "checkpoints")[2:]:
        later.rename(tmp_path / later.name)
    complete(part(order[1], tmp_path / "parts"))
    assert _difference(tmp_path / "whole", tmp_path / "parts") <= 1e-5
    assert [line["step"] for line in log_of(tmp_path / "parts")] == list(range(1, 9))


def test_a_signal_to_one_process_stops_all_of_them_at_the_same_step(
    tiny_corpus: Path, labels: Path, tmp_path: Path
) -> None:
    settings = ("train.steps=100000", "train.save_every=100000", "train.log_every=100000")
    words = two_processes(tiny_corpus, labels, tmp_path, *settings)
    words.insert(words.index("--standalone"), "--max-restarts=3")
    process = _start(words)
    _wait_for(lambda: (tmp_path / "log.jsonl").exists() and len(_pids(process.pid)) == 2, process)
    time.sleep(1.5)
    sent = time.monotonic()
    os.kill(_pids(process.pid)[1], signal.SIGUSR1)  # as Slurm sends before it takes machines away
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - sent < 20
    steps = re.findall(r"Stopped at step (\d+)", errors)
    assert len(steps) == 2, errors[-3000:]
    assert len(set(steps)) == 1
    assert process.returncode == 0  # anything else would have torchrun start them again
    assert not (tmp_path / "config.json").exists()
    checkpoint = last_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == int(steps[0])


def test_a_second_signal_ends_the_process_at_once() -> None:
    script = (
        "import time; from speechssl.train.signals import stop_signals\n"
        "with stop_signals(lambda: print('asked', flush=True)):\n"
        "    print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGTERM)  # the same request, from torchrun beside Slurm
    time.sleep(1.2)
    assert process.poll() is None
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    assert time.monotonic() - sent < 5


def test_torchrun_restarts_after_a_process_was_killed_and_ends_with_the_same_weights(
    tiny_corpus: Path, labels: Path, tmp_path: Path
) -> None:
    settings = ("train.steps=40", "train.save_every=3")
    complete(two_processes(tiny_corpus, labels, tmp_path / "whole", *settings))
    words = two_processes(tiny_corpus, labels, tmp_path / "killed", *settings)
    words.insert(words.index("--standalone"), "--max-restarts=1")
    process = _start(words)
    folder = tmp_path / "killed"
    _wait_for(lambda: bool(list_checkpoints(folder / "checkpoints")), process)
    os.kill(_pids(process.pid)[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-3000:]
    assert re.search(r"Going on from step \d+", errors), errors[-3000:]
    assert log_of(folder) == log_of(tmp_path / "whole")
    assert _difference(folder, tmp_path / "whole") == 0
