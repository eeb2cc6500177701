"""Long audio: peak memory of 10 minutes beside 3 hours, and what computing in windows changes.

Memory: files of noise and tones are streamed to the disk and extracted by the command line's own code with chunks, each
in a process of its own; its peak resident set is printed, beside that of 10 minutes in one go. Deviation: the features
of a shorter file in chunks beside those in one go, as |difference| / |features| over all frames, for several settings,
of the input of the first block, the middle one's output and the last one's, and the largest difference of any number.

    python benchmarks/long_audio.py
    python benchmarks/long_audio.py --skip-memory --upstream hubert_base --seconds 120
    python benchmarks/long_audio.py --skip-memory --upstream exp/pretrain2 --audio talk.flac
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

from speechssl.extraction import extract
from speechssl.feature_extraction import write_features
from speechssl.feature_files import FeatureFolder
from speechssl.loading import load_upstream
from speechssl.types import HiddenStates, Utterance

RATE = 16_000
SETTINGS = ((10.0, 0.0), (10.0, 1.0), (10.0, 5.0), (30.0, 5.0), (30.0, 15.0))
MEMORY_UPSTREAM, MEMORY_LAYER = "hubert_tiny", 2


def write_audio(path: Path, seconds: float) -> None:
    """Noise and two tones whose levels move, second by second."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        for second in range(round(seconds)):
            t = second + np.arange(RATE) / RATE
            level = 0.1 + 0.08 * np.sin(2 * np.pi * t / 7)
            tones = np.sin(2 * np.pi * (200 + 50 * (second % 5)) * t) + 0.5 * np.sin(2 * np.pi * 1200 * t)
            file.write(level * (tones + 0.5 * rng.standard_normal(RATE)))


def extract_here(path: str, chunk: float | None) -> None:
    """Extracts in this process, and prints seconds and the peak of the memory."""
    upstream = load_upstream(MEMORY_UPSTREAM, random_weights=0)
    with tempfile.TemporaryDirectory() as out:
        folder = FeatureFolder(
            Path(out),
            upstream=upstream,
            layers=(MEMORY_LAYER,),
            format="npy",
            precision="float32",
            chunk=chunk,
            context=5.0,
        )
        begin = time.perf_counter()
        summary = write_features(upstream, [path], folder, batch_seconds=60.0, workers=1, skip_bad=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{summary.computed.frames} frames, {time.perf_counter() - begin:.0f} s, peak {peak:.0f} MB")


def measure_memory(folder: Path) -> None:
    for seconds, chunk in ((600, 30.0), (10_800, 30.0), (600, None)):
        path = folder / f"{seconds}.wav"
        if not path.exists():
            write_audio(path, seconds)
        command = [sys.executable, __file__, "--here", str(path), *([] if chunk is None else ["--chunk", str(chunk)])]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        how = "in one go" if chunk is None else f"chunks of {chunk:g} s"
        print(
            f"{MEMORY_UPSTREAM}, {seconds / 60:g} min, layer {MEMORY_LAYER}, {how}: {done.stdout.strip()}", flush=True
        )


def relative(found: HiddenStates, exact: HiddenStates, layer: int) -> float:
    return float((found[layer] - exact[layer]).norm() / exact[layer].norm())


def measure_deviation(name: str, path: Path) -> None:
    upstream = load_upstream(name, random_weights=None if Path(name).is_dir() else 0)
    utterance, last = Utterance("x", str(path)), len(upstream.hidden_sizes) - 1
    layers = sorted({0, (last + 1) // 2, last})
    ((_, exact),) = extract(upstream, [utterance], layers=layers)
    for chunk, context in SETTINGS:
        begin = time.perf_counter()
        ((_, found),) = extract(upstream, [utterance], layers=layers, chunk=chunk, context=context)
        per_layer = ", ".join(f"layer {k}: {relative(found, exact, k):.1e}" for k in layers)
        largest = max(float((found[k] - exact[k]).abs().max()) for k in layers)
        took = time.perf_counter() - begin
        print(
            f"{name}, chunk {chunk:g}, context {context:g}: {per_layer}, largest {largest:.1e}, {took:.0f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", action="append", help="preset (random weights) or folder, for the deviation")
    parser.add_argument("--seconds", type=float, default=120.0, help="of the file for the deviation")
    parser.add_argument("--audio", type=Path, help="for the deviation, instead of noise and tones")
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--chunk", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        extract_here(options.here, options.chunk)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        if not options.skip_memory:
            measure_memory(Path(folder))
        audio = options.audio or Path(folder) / "deviation.wav"
        if options.audio is None:
            write_audio(audio, options.seconds)
        for name in options.upstream or [MEMORY_UPSTREAM, "wav2vec2_base"]:
            measure_deviation(name, audio)


if __name__ == "__main__":
    main()
