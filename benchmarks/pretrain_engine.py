"""What the pre-training engine costs beside the model, and what its options gain: python benchmarks/pretrain_engine.py.

Trains an upstream on noise cut like speech, on whatever device there is, and prints for each setting the seconds of
audio per second of processor time (on a CPU, which others may share) or of the clock (on a GPU), the memory, and the
share of each part of a step. `--presets hubert_tiny hubert_base --steps 20`
"""

import argparse
import logging
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import torch
from rich.console import Console
from rich.table import Table

from speechssl.data.batching import make_generator
from speechssl.data.corpus import open_corpus
from speechssl.data.manifests import Clip, write_corpus
from speechssl.targets.labels import label_path, make_label_set
from speechssl.train import loop, run
from speechssl.train.metrics import read_log

PARTS = ("waiting for data", "forward", "backward", "update", "metrics", "end of step", "checkpoint")


class Timed(loop.Pretraining):
    """Adds up what each part of a step takes; a GPU is waited for at the end of each part."""

    spent: defaultdict[str, float]

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.spent = defaultdict(float)
        self.first = None
        Timed.last = self
        self.now = time.process_time if self.device.type == "cpu" else time.perf_counter
        self.fabric.backward = self._part("backward", self.fabric.backward)
        for name, part in (
            ("_forward", "forward"),
            ("_apply", "update"),
            ("_record", "metrics"),
            ("_save", "checkpoint"),
        ):
            setattr(self, name, self._part(part, getattr(self, name)))
        self.objective.end_step = self._part("end of step", self.objective.end_step)
        self.clock.waiting = self._waiting

    def _part(self, part, function):
        def timed(*given, **named):
            begin = self.now()
            result = function(*given, **named)
            self.spent[part] += self.now() - begin
            return result

        return timed

    @contextmanager
    def _waiting(self):
        begin = time.perf_counter()
        yield
        self.spent["waiting for data"] += time.perf_counter() - begin

    def _update(self, batches):
        if self.step == self.config.steps // 2:  # the first half is for compilers and caches
            self.spent.clear()
            self.first = self.now(), time.perf_counter()
        super()._update(batches)


def make_data(folder, *, utterances):
    """A corpus of noise of 2 to 15 seconds, and labels at 50 Hz."""
    random = np.random.default_rng(0)
    (folder / "corpus" / "audio").mkdir(parents=True)
    clips = []
    for number in range(utterances):
        samples = int(random.uniform(2, 15) * 16_000)
        path = f"audio/{number}.wav"
        soundfile.write(folder / "corpus" / path, random.normal(0, 0.1, samples).astype("float32"), 16_000)
        clips.append(
            Clip(id=str(number), path=path, samples=samples, source="noise", language="xx", licence="CC0-1.0",
                 text=None, raw_text=None, speaker="noise", custom={})
        )  # fmt: skip
    write_corpus(folder / "corpus", {"train": clips}, name="noise", source="synthetic", sources=[])
    corpus = open_corpus(folder / "corpus")
    codes = {
        u.id: torch.randint(100, (round(u.duration * 50),), generator=make_generator(u.id))
        for u in corpus.utterances("train")
    }
    made = make_label_set(codes, num_labels=100, label_rate=50.0, corpus=corpus.fingerprint, origin="chance")
    made.save(label_path(folder / "labels", "train"))


def measure(folder, preset, steps, *settings):
    output = Path(tempfile.mkdtemp(dir=folder))
    common = ("train.batches_per_step=2", "train.warmup=0", "train.keep=1", "train.grid_seconds=1")
    run.pretrain(
        preset, corpus=folder / "corpus", labels=[folder / "labels"], output=output,
        overrides=(*common, f"train.steps={steps}", f"train.log_every={steps // 2}", f"train.save_every={steps}",
                   *settings),
    )  # fmt: skip
    timed, line = Timed.last, read_log(output)[-1]
    total = timed.now() - timed.first[0]
    wall = time.perf_counter() - timed.first[1]
    spent = dict(timed.spent)
    return line["audio_seconds"], total, wall, spent, line.get("memory_gb")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=["hubert_tiny"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--utterances", type=int, default=60)
    parser.add_argument("--settings", nargs="*", default=["train.batch_seconds=30"])
    parser.add_argument(
        "--variants", nargs="+", default=["", "train.checkpoint_activations=true", "train.compile=true"]
    )
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    run.Pretraining = Timed
    table = Table("preset", "setting", "s of audio/s", "GPU memory, GB", *PARTS, "rest")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, utterances=options.utterances)
        for preset in options.presets:
            for variant in options.variants:
                audio, total, wall, spent, memory = measure(
                    folder, preset, options.steps, *options.settings, *variant.split()
                )
                training = total - spent.get("checkpoint", 0.0)
                shares = [spent.get(part, 0.0) / (wall if part == PARTS[0] else total) for part in PARTS]
                rest = 1 - sum(shares[1:])
                peak = "-" if memory is None else f"{memory:.2f}"
                table.add_row(
                    preset, variant or "as it is", f"{audio / training:.1f}", peak,
                    *[f"{100 * share:.1f} %" for share in (*shares, rest)],
                )  # fmt: skip
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
