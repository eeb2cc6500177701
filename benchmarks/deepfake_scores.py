"""Processor seconds to measure a million scores of deepfake detection, beside the way of public evaluation scripts.

    python benchmarks/deepfake_scores.py                    # a million trials, 13 attacks, 7 codecs
    python benchmarks/deepfake_scores.py --trials 100000

The peer reads both files by `numpy.genfromtxt(..., dtype=str)` and finds the least detection cost by a loop over
thresholds, as the evaluation scripts of AASIST and of ASVspoof 5 do, and measures EER and minDCF of all trials alone.
Ours does that and all else that `speechssl score deepfake_detection` does by itself: Cllr, actDCF, each attack, each
codec, intervals, the page. What either imports is imported before; how long ours takes for that is said apart.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from speechssl.scoring import run_score, score_module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1_000_000)
    parser.add_argument("--replicates", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scores, protocol = write_files(Path(folder), options.trials)
        begin = time.process_time()
        score_module("deepfake_detection")
        imported = time.process_time() - begin
        begin = time.process_time()
        settings = [f"replicates={options.replicates}"]
        _, found = run_score("deepfake_detection", [scores, protocol], settings=settings, out=Path(folder, "out"))
        ours = time.process_time() - begin
        groups = sum(map(len, found.breakdown.values()))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"ours: {ours:.1f} s, all measures with intervals, {groups} groups; peak {peak:.1f} GB")
        print(f"      {imported:.1f} s more to import what it needs")
        begin = time.process_time()
        eer, cost = peer(scores, protocol)
        theirs = time.process_time() - begin
        print(
            f"peer: {theirs:.1f} s, EER and minDCF without intervals, no groups; ours takes {ours / theirs:.2f} of that"
        )
        values = {name: next(iter(found.metrics[name].values())).value for name in ("eer", "min_dcf")}
        assert abs(values["eer"] - eer) < 1e-9 and abs(values["min_dcf"] - cost) < 1e-9, (values, eer, cost)


def write_files(folder: Path, trials: int) -> tuple[Path, Path]:
    """Scores and a protocol in the forms of ASVspoof 2021 LA; a tenth is bona fide."""
    rng = np.random.default_rng(0)
    bona_fide = np.arange(trials) % 10 == 0
    scores = rng.normal(np.where(bona_fide, 2.0, -1.0), 1.0)
    attacks, codecs = rng.integers(7, 20, trials), rng.integers(0, 7, trials)
    lines = [
        f"LA_{k % 67:04d} LA_E_{k:07d} codec{c} x {'bonafide bonafide' if real else f'A{a:02d} spoof'} notrim eval\n"
        for k, (real, a, c) in enumerate(zip(bona_fide.tolist(), attacks.tolist(), codecs.tolist(), strict=True))
    ]
    (folder / "protocol.txt").write_text("".join(lines))
    order = rng.permutation(trials)
    text = "".join(f"LA_E_{k:07d} {s!r}\n" for k, s in zip(order.tolist(), scores[order].tolist(), strict=True))
    (folder / "scores.txt").write_text(text)
    return folder / "scores.txt", folder / "protocol.txt"


def peer(scores: Path, protocol: Path) -> tuple[float, float]:
    """EER and minDCF."""
    truth = np.genfromtxt(protocol, dtype=str)
    table = np.genfromtxt(scores, dtype=str)
    keys = dict(zip(truth[:, 1], truth[:, 5], strict=True))
    values, labels = table[:, 1].astype(np.float64), np.array([keys[name] for name in table[:, 0]])
    bona_fide, spoof = values[labels == "bonafide"], values[labels == "spoof"]
    order = np.argsort(np.concatenate((bona_fide, spoof)), kind="mergesort")
    hits = np.concatenate((np.ones(bona_fide.size), np.zeros(spoof.size)))[order]
    miss = np.concatenate(([0.0], np.cumsum(hits) / bona_fide.size))
    alarm = np.concatenate(([1.0], 1.0 - np.cumsum(1.0 - hits) / spoof.size))
    at = np.argmin(np.abs(miss - alarm))
    least = float("inf")
    for m, a in zip(miss, alarm, strict=True):
        least = min(least, 0.95 * m + 10 * 0.05 * a)
    return float((miss[at] + alarm[at]) / 2), float(least / 0.5)


if __name__ == "__main__":
    main()
