"""ABX beside a plain loop over pairs, and beside fastabx, in one run.

    python benchmarks/abx.py
    python benchmarks/abx.py --fastabx PYTHON

PYTHON is an interpreter with fastabx (Python 3.12 or later). The features are random, which the cost does not depend
on; the tokens are those of words that every speaker says over and over, so that triphones come again. Nothing is drawn,
so that all compare the same tokens. Timed are the plan and the score, of features that are in memory; fastabx likewise
(`Task` and `Score`), its best of `--turns` and ours. The plain loop gets a sample of the pairs: scipy's distances and a
warping path, by librosa (compiled) or in plain Python. Its time for all is that of the sample times the pairs of tokens
that have to be compared, each once.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

RATE = 50  # Hz
CLOCKS = [time.perf_counter]
"""What measures; `--cpu-time` replaces it, for a machine that others use (with one thread)."""
CONDITIONS = (("within", "within"), ("across", "within"), ("within", "any"))
"""Speakers and context: triphones twice, and phonemes."""


def make_corpus(folder: Path, *, speakers: int, utterances: int, width: int) -> None:
    """Writes item files of triphones and phonemes, and features (T, D) as .pt, of utterances of ten seconds."""
    from speechssl.analysis.abx.items import Phone, make_items, write_items

    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    phones = [f"p{i}" for i in range(24)]
    words = [[phones[i] for i in rng.integers(0, 24, rng.integers(2, 6))] for _ in range(60)]
    items: dict[str, list[Any]] = {"triphone": [], "phoneme": []}
    for speaker in range(speakers):
        for number in range(utterances):
            name, spoken, at = f"s{speaker}-{number:03}", [], 0.0
            while at < 9.5:
                for label in words[int(rng.integers(len(words)))]:
                    end = round(at + float(rng.uniform(0.05, 0.13)), 4)
                    spoken.append(Phone(label, at, end))
                    at = end
            for unit in ("triphone", "phoneme"):
                items[unit] += make_items(name, f"s{speaker}", spoken, unit=unit)
            frames = int(at * RATE) + 2
            torch.save(torch.randn(frames, width, generator=generator), folder / f"{name}.pt")
    for unit, found in items.items():
        write_items(found, folder / f"{unit}.item")


def item_file(folder: Path, context: str) -> Path:
    return folder / ("triphone.item" if context == "within" else "phoneme.item")


def ours(folder: Path, turns: int) -> dict[str, Any]:
    from speechssl.analysis.abx.items import read_items
    from speechssl.analysis.abx.score import abx_error
    from speechssl.analysis.abx.task import AbxSettings, plan_abx

    features = {path.stem: torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))}
    lengths = {name: len(frames) for name, frames in features.items()}
    found = {}
    for speaker, context in CONDITIONS:
        items = read_items(item_file(folder, context))
        settings = AbxSettings(speaker, context, max_size_group=None, max_x_across=None)  # type: ignore[arg-type]
        abx_error(plan_abx(items[:200], lengths, RATE), features)  # compiles the kernels
        seconds = []
        for _ in range(turns):
            begin = CLOCKS[0]()
            task = plan_abx(items, lengths, RATE, settings)
            planned = CLOCKS[0]() - begin
            score = abx_error(task, features)
            seconds.append(CLOCKS[0]() - begin)
        pairs = sum(len(f.rows) * len(f.columns) // (2 if f.square else 1) for f in task.families)
        found[f"{speaker}/{context}"] = {
            "seconds": min(seconds), "plan": planned, "error": score.error, "cells": score.cells, "pairs": pairs
        }  # fmt: skip
    return found


def theirs(folder: Path, turns: int) -> dict[str, Any]:
    """fastabx, in its own interpreter."""
    from fastabx import Dataset, Score, Task  # type: ignore[import-not-found, unused-ignore]  # elsewhere

    found = {}
    for speaker, context in CONDITIONS:
        by = ["prev-phone", "next-phone"] if context == "within" else []
        across = ["speaker"] if speaker == "across" else None
        seconds = []
        for _ in range(turns):
            dataset = Dataset.from_item(item_file(folder, context), folder, RATE)
            begin = CLOCKS[0]()
            task = Task(dataset, on="#phone", by=by + ([] if across else ["speaker"]) or None, across=across)
            score = Score(task, "angular")
            levels = [("next-phone", "prev-phone"), "speaker"] if context == "within" else ["speaker"]
            error = float(score.collapse(levels=levels))
            seconds.append(CLOCKS[0]() - begin)
        found[f"{speaker}/{context}"] = {"seconds": min(seconds), "error": error, "cells": len(task)}
    return found


def plain_loop(folder: Path, pairs: int) -> dict[str, float]:
    """Seconds per pair of triphones."""
    import librosa
    from scipy.spatial.distance import cdist

    from speechssl.analysis.abx.items import item_frames, read_items

    items, rng = read_items(item_file(folder, "within")), np.random.default_rng(0)
    features = {path.stem: torch.load(path, weights_only=True).numpy() for path in folder.glob("*.pt")}

    def frames(number: int) -> Any:
        first, end = item_frames(items[number], RATE)
        return features[items[number].file][first:end]

    def by_librosa(costs: Any) -> float:
        table, path = librosa.sequence.dtw(C=costs)
        return float(table[-1, -1]) / len(path)

    def by_python(costs: Any) -> float:
        total: list[list[tuple[float, int]]] = []
        for i, row in enumerate(costs.tolist()):
            line: list[tuple[float, int]] = []
            for j, cost in enumerate(row):
                left, up = line[j - 1 : j], total[i - 1][j : j + 1] if i else []
                before = (total[i - 1][j - 1 : j] if i and j else []) + left + up
                least, cells = min(before, key=lambda step: step[0], default=(0.0, 0))
                line.append((least + cost, cells + 1))
            total.append(line)
        return total[-1][-1][0] / total[-1][-1][1]

    found = {}
    chosen = rng.integers(len(items), size=(pairs, 2)).tolist()
    for name, warp in (("librosa", by_librosa), ("python", by_python)):
        warp(np.ones((3, 4)))
        begin = CLOCKS[0]()
        for a, b in chosen:
            warp(np.arccos(np.clip(1.0 - cdist(frames(a), frames(b), "cosine"), -1.0, 1.0)) / np.pi)
        found[name] = (CLOCKS[0]() - begin) / pairs
    return found


def in_child(python: str, kind: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One system in a process of its own, so that each has all its threads."""
    command = [python, __file__, "--child", kind, "--folder", folder, "--turns", arguments.turns]
    command += ["--cpu-time"] * arguments.cpu_time
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "TQDM_DISABLE": "1"}
    done = subprocess.run([str(c) for c in command], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speakers", type=int, default=8)
    parser.add_argument("--utterances", type=int, default=8, help="of ten seconds, for each speaker")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="count processor seconds instead of wall clock")
    parser.add_argument("--plain-pairs", type=int, default=300)
    parser.add_argument("--fastabx", metavar="PYTHON", help="an interpreter with fastabx")
    parser.add_argument("--child", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.cpu_time:
        CLOCKS[0] = time.process_time
    if arguments.child:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        print(json.dumps((ours if arguments.child == "ours" else theirs)(arguments.folder, arguments.turns)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_corpus(folder, speakers=arguments.speakers, utterances=arguments.utterances, width=arguments.width)
        mine = in_child(sys.executable, "ours", folder, arguments)
        other = in_child(arguments.fastabx, "theirs", folder, arguments) if arguments.fastabx else {}
        torch.set_num_threads(1)
        plain = plain_loop(folder, arguments.plain_pairs)
    for condition, own in mine.items():
        print(
            f"{condition}: {own['cells']} cells, {own['pairs']} pairs of tokens; ours {own['seconds']:.2f} s "
            f"(plan {own['plan']:.2f} s), error {own['error']:.6f}"
        )
        for kind, each in plain.items():
            print(f"    plain loop ({kind}) {own['pairs'] * each:.1f} s: {own['pairs'] * each / own['seconds']:.1f} x")
        if condition in other:
            peer = other[condition]
            print(
                f"    fastabx {peer['seconds']:.2f} s, {peer['cells']} cells, error {peer['error']:.6f}: "
                f"{peer['seconds'] / own['seconds']:.2f} x"
            )


if __name__ == "__main__":
    main()
