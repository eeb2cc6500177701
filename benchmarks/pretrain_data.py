"""The data side of pre-training: memory and time per utterance, padding, reading, and what a run waits for.

python benchmarks/pretrain_data.py memory [--utterances 10000 1000000]
python benchmarks/pretrain_data.py padding
python benchmarks/pretrain_data.py read [--hours 1]
python benchmarks/pretrain_data.py wait CORPUS [--steps 60]

`memory` writes manifests of that many cuts, which name one and the same audio file, and label files of 50 Hz; it opens
each in a process of its own, as a run does. Anonymous memory is what the process needs; what is mapped from files the
system takes back when memory is short. `padding` draws durations like those of LibriSpeech's 960 hours (281 241
utterances, 12.3 s on average). `read` writes FLAC files and a Shar folder of such durations.
"""

import argparse
import gzip
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

SEED = 0
CUT = (
    '{{"id": "{name}", "start": 0.0, "duration": {duration}, "channel": 0, "supervisions": [{{"id": "{name}", '
    '"recording_id": "{name}", "start": 0.0, "duration": {duration}, "channel": 0, "text": "a transcript of this cut", '
    '"language": "{language}", "speaker": "{speaker}"}}], "recording": {{"id": "{name}", "sources": [{{"type": "file", '
    '"channels": [0], "source": "{path}"}}], "sampling_rate": 16000, "num_samples": {samples}, "duration": {duration}, '
    '"channel_ids": [0]}}, "type": "MonoCut"}}\n'
)


def librispeech_durations(count: int) -> NDArray[np.float64]:
    """Seconds: most utterances of LibriSpeech were cut at 12 to 16 s, the rest is spread evenly below."""
    generator = np.random.default_rng(SEED)
    seconds: NDArray[np.float64] = np.where(
        generator.random(count) < 0.3, generator.uniform(1.5, 11, count), generator.normal(15, 1.2, count)
    )
    return seconds.round(2)


def memory_of(process: int | str = "self") -> dict[str, float]:
    """MB: 'anonymous' memory, 'mapped' files, and what is 'private' to the process."""
    fields = {
        line.split()[0]: line.split()[1] for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    }
    found = {k.rstrip(":"): int(v) / 1024 for k, v in fields.items()}
    private = found["Private_Dirty"]
    return {"anonymous": found["Anonymous"], "mapped": found["Rss"] - found["Anonymous"], "private": private}


@contextmanager
def timed(row: dict[str, float], name: str) -> Iterator[None]:
    """Adds the seconds that the block takes."""
    begin = time.perf_counter()
    yield
    row[name] = time.perf_counter() - begin


def make_manifest(folder: Path, count: int) -> None:
    """Writes `cuts.jsonl.gz` and its labels."""
    import torch

    from speechssl.targets.labels import LabelSet, label_path

    durations = librispeech_durations(count)
    with gzip.open(folder / "cuts.jsonl.gz", "wt", compresslevel=1) as file:
        for number, seconds in enumerate(durations.tolist()):
            speaker = f"{number // 120:05d}"
            name = f"{speaker}-{number // 30:06d}-{number:08d}"
            path = f"/data/LibriSpeech/train-clean-360/{speaker}/{number // 30:06d}/{name}.flac"
            values = {"name": name, "duration": seconds, "samples": round(seconds * 16_000), "speaker": speaker}
            file.write(CUT.format(path=path, language=f"l{number % 53}", **values))
    frames = np.floor(durations * 50).astype(np.int64)
    names = [f"{n // 120:05d}-{n // 30:06d}-{n:08d}" for n in range(count)]
    offsets = torch.from_numpy(np.concatenate(([0], np.cumsum(frames))))
    codes = torch.zeros(int(offsets[-1]), dtype=torch.int16)
    LabelSet(codes, offsets, names, 500, 50.0, "generated", "zeros").save(label_path(folder, "train"))


def measure_memory(folder: Path) -> dict[str, float]:
    """Opens what `make_manifest` wrote, as a run does; in a process of its own."""
    from speechssl.data import sources
    from speechssl.targets.labels import label_path, load_labels
    from speechssl.train.config import PretrainConfig
    from speechssl.train.data import PretrainDataset
    from speechssl.train.selection import CropConfig

    row: dict[str, float] = {}
    sources.SMALL = 0
    with timed(row, "open"):
        source = sources.open_source(folder / "cuts.jsonl.gz", "train", cache=folder / "cache")
    base = memory_of()
    with timed(row, "dataset"):
        labels = load_labels(label_path(folder, "train"))
        dataset = PretrainDataset(source.index, [labels], CropConfig(16_000, 50.0, 2.0, 15.6, SEED), cache_gb=0.0)
    with timed(row, "first batch"):
        stream = dataset.stream(PretrainConfig())
        batches = iter(stream)
        first = next(batches)
    after = memory_of()
    row["anonymous MB"] = after["anonymous"] - base["anonymous"]
    row["mapped MB"] = after["mapped"] - base["mapped"]
    with timed(row, "resume"):
        again = dataset.stream(PretrainConfig())
        again.load_state(stream.state_after(first))
        next(iter(again))
    row["worker private MB"] = _worker_memory(dataset)
    return row


def _worker_memory(dataset: object) -> float:
    """What a process that was forked has of its own after it looked up 1000 utterances."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_look_up, args=(dataset, queue))
    process.start()
    found = float(queue.get())
    process.join()
    return found


def _look_up(dataset: "object", queue: "multiprocessing.Queue[float]") -> None:
    begin = memory_of()["private"]
    utterances = dataset.utterances  # type: ignore[attr-defined]  # a PretrainDataset, imported late
    for number in np.random.default_rng(0).integers(len(utterances), size=1000):
        utterances[int(number)]
    queue.put(memory_of()["private"] - begin)


def memory(counts: list[int]) -> None:
    """Prints the table of memory and time."""
    names = [
        "index built, s",
        "open",
        "dataset",
        "first batch",
        "resume",
        "anonymous MB",
        "mapped MB",
        "worker private MB",
    ]
    table = Table("utterances", *names)
    found: dict[int, dict[str, float]] = {}
    for count in counts:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
            folder = Path(name)
            subprocess.run([sys.executable, __file__, "_make", name, str(count)], check=True)
            begin = time.perf_counter()
            build = [sys.executable, __file__, "_build", name]
            subprocess.run(build, check=True)
            seconds = time.perf_counter() - begin
            done = subprocess.run([sys.executable, __file__, "_open", name], check=True, capture_output=True, text=True)
            row = json.loads(done.stdout.splitlines()[-1])
            found[count] = {"index built, s": seconds, **row}
            size = sum(f.stat().st_size for f in (folder / "cache").rglob("*") if f.is_file()) / 1e6
        table.add_row(f"{count} ({size:.0f} MB of index)", *(f"{found[count][n]:.2f}" for n in names))
    Console(width=160).print(table)
    if len(counts) > 1:
        a, b = counts[0], counts[-1]
        grown = (found[b]["anonymous MB"] - found[a]["anonymous MB"]) * 2**20 / (b - a)
        Console().print(f"{grown:.1f} bytes of anonymous memory for each further utterance")


def build(folder: str) -> None:
    """Builds the index and prints the largest memory that took."""
    import resource

    from speechssl.data import sources

    sources.SMALL = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sources.open_source(Path(folder) / "cuts.jsonl.gz", "train", cache=Path(folder) / "cache")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Console().print(f"building the index: {before / 1024:.0f} -> {after / 1024:.0f} MB at most")


def padding() -> None:
    """Prints the share of padding for several batch sizes."""
    from speechssl.data.batching import BatchStream

    durations = librispeech_durations(281_241)
    table = Table("seconds per batch", "crop", "padding", "batches", "plan of an epoch, s")
    for batch_seconds in (60.0, 87.5, 200.0, 400.0):
        for longest in (15.625, 40.0):
            seconds = np.minimum(durations, longest)
            begin = time.perf_counter()
            plan = BatchStream(seconds, batch_seconds=batch_seconds, seed=SEED).plan(0)
            took = time.perf_counter() - begin
            padded = sum(seconds[plan.indices(n)].max() * len(plan.indices(n)) for n in range(len(plan)))
            share = 1 - seconds.sum() / padded
            table.add_row(f"{batch_seconds:g}", f"{longest:g}", f"{100 * share:.2f} %", str(len(plan)), f"{took:.2f}")
    Console().print(table)


def make_audio(folder: Path, hours: float) -> None:
    """Writes FLAC files of filtered noise, which compress about as speech does, their manifest, and a Shar folder."""
    import soundfile
    from lhotse import CutSet, Recording
    from lhotse.shar import SharWriter
    from scipy.signal import lfilter

    generator = np.random.default_rng(SEED)
    noise = lfilter([1.0], [1.0, -0.95], generator.normal(0, 0.02, 16_000 * 60)).astype(np.float32)
    recordings = []
    for number, seconds in enumerate(librispeech_durations(round(hours * 3600 / 12.3)).tolist()):
        size, begin = round(seconds * 16_000), int(generator.integers(16_000 * 30))
        path = folder / f"{number:06d}.flac"
        soundfile.write(path, noise[begin : begin + size] * np.hanning(size), 16_000)
        recordings.append(Recording.from_file(path))
    cuts = CutSet.from_cuts(r.to_cut() for r in recordings)
    cuts.to_file(folder / "cuts.jsonl.gz")
    (folder / "shar").mkdir()
    with SharWriter(str(folder / "shar"), fields={"recording": "flac"}, shard_size=100) as writer:
        for cut in cuts:
            writer.write(cut)


def read(hours: float) -> None:
    """Prints how fast micro-batches are read from files and archives, in threads and processes."""
    from speechssl.data.sources import open_source
    from speechssl.train.config import PretrainConfig
    from speechssl.train.data import PretrainDataset
    from speechssl.train.loading import load_batches
    from speechssl.train.selection import CropConfig

    table = Table("source", "workers", "audio s per s", "utterances per s", "audio s per s of CPU time")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_audio(folder, hours)
        for source in ("cuts.jsonl.gz", "shar"):
            index = open_source(folder / source, "train").index
            dataset = PretrainDataset(index, [], CropConfig(16_000, 50.0, 2.0, 15.625, SEED), cache_gb=0.0)
            for workers in (0, 1, 2):
                stream = dataset.stream(PretrainConfig())
                used = sum(os.times()[:4])
                batches = load_batches(dataset, stream, num_workers=workers)
                next(batches)  # starts the processes
                begin = time.perf_counter()
                found = [(b.audio_seconds, len(b.origin.indices)) for b in islice(batches, len(stream.plan(0)))]
                took = time.perf_counter() - begin
                batches.close()
                used = sum(os.times()[:4]) - used
                seconds, utterances = (sum(values) / took for values in zip(*found, strict=True))
                table.add_row(
                    source, str(workers), f"{seconds:.0f}", f"{utterances:.0f}", f"{seconds * took / used:.0f}"
                )
    Console().print(table)


def wait(corpus: Path, steps: int) -> None:
    """Prints the share of a real run's time in which it waits for data, in its second half; the labels are made up."""
    import torch

    from speechssl.data.sources import open_source
    from speechssl.targets.labels import label_path, make_label_set
    from speechssl.train.metrics import read_log
    from speechssl.train.run import pretrain

    source = open_source(corpus, "train")
    codes = {u.id: torch.arange(round(100 * (u.duration or 0.0))) % 100 for u in source.index}
    labels = make_label_set(codes, num_labels=100, label_rate=100.0, corpus=source.fingerprint, origin="time")
    table = Table("audio", "workers", "seconds of audio per second", "share of the time that is waited")
    for name, gigabytes, workers in (("memory", 4.0, 1), ("files", 0.0, 0), ("files", 0.0, 1), ("files", 0.0, 2)):
        with tempfile.TemporaryDirectory() as folder:
            labels.save(label_path(Path(folder), "train"))
            overrides = [f"train.steps={steps}", f"train.cache_gb={gigabytes}", f"train.num_workers={workers}"]
            overrides += ["train.batches_per_step=1", "train.save_every=100000", f"train.log_every={steps // 2}"]
            pretrain("hubert_tiny", corpus=corpus, labels=[folder], output=Path(folder) / "run", overrides=overrides)
            last = read_log(Path(folder) / "run")[-1]
        waited = f"{100 * (1 - last['device_use']):.2f} %"
        table.add_row(name, str(workers), f"{last['audio_per_second']:.0f}", waited)
    Console().print(table)


def main() -> None:
    """Runs what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("memory").add_argument("--utterances", type=int, nargs="+", default=[10_000, 1_000_000])
    verbs.add_parser("padding")
    reading = verbs.add_parser("read")
    reading.add_argument("--hours", type=float, default=1.0)
    waiting = verbs.add_parser("wait")
    waiting.add_argument("corpus", type=Path)
    waiting.add_argument("--steps", type=int, default=60)
    for name in ("_make", "_build", "_open"):
        hidden = verbs.add_parser(name)
        hidden.add_argument("folder", type=Path)
    verbs.choices["_make"].add_argument("count", type=int)
    given = parser.parse_args()
    if given.verb == "memory":
        memory(given.utterances)
    elif given.verb == "padding":
        padding()
    elif given.verb == "read":
        read(given.hours)
    elif given.verb == "wait":
        wait(given.corpus, given.steps)
    elif given.verb == "_make":
        make_manifest(given.folder, given.count)
    elif given.verb == "_build":
        build(str(given.folder))
    elif given.verb == "_open":
        sys.stdout.write(json.dumps(measure_memory(given.folder)) + "\n")


if __name__ == "__main__":
    main()
