"""A quick pre-training run for the tests: a shrunk hubert_tiny on the tiny corpus with labels made from its audio."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from speechssl.data.batching import make_generator
from speechssl.data.corpus import open_corpus
from speechssl.targets.labels import label_path, make_label_set
from speechssl.train.metrics import read_log

SMALL = ("model.width=32", "model.depth=2", "model.heads=2", "model.ffn_width=64", "model.pos_kernel=7")
FAST = (
    *SMALL, "objective.final_dim=16", "train.batch_seconds=6", "train.batches_per_step=2", "train.min_seconds=0.5",
    "train.max_seconds=1.2", "train.log_every=1", "train.save_every=2", "train.steps=8", "train.threads=1",
    "train.accelerator=cpu", "train.warmup=0.25", "train.learning_rate=2e-3",
)  # fmt: skip
LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
SCHEDULE = ("seconds", "audio_per_second", "device_use", "memory_gb")
"""Of a log line, what depends on the clock."""


def write_labels(corpus: Path, folder: Path) -> Path:
    """Random labels at 100 Hz."""
    opened = open_corpus(corpus)
    for split in ("train", "dev"):
        codes = {
            u.id: torch.randint(12, (round((u.duration or 0) * 100),), generator=make_generator(u.id))
            for u in opened.utterances(split)
        }
        made = make_label_set(codes, num_labels=12, label_rate=100.0, corpus=opened.fingerprint, origin="chance")
        made.save(label_path(folder, split))
    return folder


def arguments(corpus: Path, labels: Path, output: Path, *overrides: str) -> list[str]:
    """Of `speechssl`."""
    given = ["pretrain", "hubert_tiny", "--corpus", str(corpus), "--labels", str(labels), "-o", str(output)]
    return [*given, *FAST, *overrides]


def command(corpus: Path, labels: Path, output: Path, *overrides: str) -> list[str]:
    """The run as a process of its own."""
    return [
        sys.executable, "-c", "from speechssl.cli import main; main()", *arguments(corpus, labels, output, *overrides)
    ]  # fmt: skip


def two_processes(corpus: Path, labels: Path, output: Path, *overrides: str) -> list[str]:
    """The run under torchrun."""
    return [*LAUNCHER, "--no-python", *command(corpus, labels, output, *overrides)]


def environment() -> dict[str, str]:
    """Of either."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}


def complete(command: list[str], **variables: str) -> None:
    """Runs a command to its end, which must be a good one."""
    done = subprocess.run(
        command, env=environment() | variables, capture_output=True, text=True, check=False, timeout=180
    )
    assert done.returncode == 0, done.stderr[-3000:]


def log_of(folder: Path) -> list[dict[str, float]]:
    """The log without what depends on the clock."""
    return [{k: v for k, v in line.items() if k not in SCHEDULE} for line in read_log(folder)]
