"""Feature extraction beside transformers: 16 files of 2 to 16 s, all hidden states, in one run.

transformers as people use it (padded batches of 8 in the order of the files, float32), one file at a time, and one file
at a time in pure bfloat16, against `speechssl.extract` in float32 and in bfloat16. Same random weights, same files;
each system is measured in turns, and the best turn counts. The roofline is the rate of plain matrix products of the
encoder's shape, measured in the same run, over the operations that the unpadded files need.

    python benchmarks/extract.py --upstream wav2vec2_base --turns 3
    python benchmarks/extract.py --device cuda --upstream wavlm_large
"""

import argparse
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# oneDNN keeps what it compiled for 1024 shapes: too few for six systems and 16 lengths, which would evict each other's.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import soundfile  # the setting must come first
import torch
import transformers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import speechssl
from speechssl.checkpoint import save_upstream
from speechssl.encoder.linear import Linear
from speechssl.export import export_upstream
from speechssl.loading import build_upstream
from speechssl.registry import find_preset

RATE = 16_000
CLOCKS = [time.perf_counter]
"""What measures; `--cpu-time` replaces it, for a machine that others use (with one thread)."""
Hidden = Iterator[tuple[str, list[Tensor]]]
"""File after file, with its hidden states (T, D) in float32 on the CPU."""


def write_files(folder: Path, count: int) -> list[Path]:
    """Noise with a moving level, 2 to 16 s, in an order that is not sorted."""
    generator = torch.Generator().manual_seed(0)
    seconds = torch.linspace(2.0, 16.0, count)[torch.randperm(count, generator=generator)].tolist()
    paths = []
    for index, duration in enumerate(seconds):
        samples = int(duration * RATE)
        waveform = 0.1 * torch.randn(samples, generator=generator) * torch.linspace(0.3, 1.0, samples)
        paths.append(folder / f"{index:02}.flac")
        soundfile.write(paths[-1], waveform.numpy(), RATE)
    return paths


class Theirs:
    """transformers' model with its own feature extractor."""

    def __init__(self, folder: Path, device: str, dtype: torch.dtype) -> None:
        self.model = transformers.AutoModel.from_pretrained(folder, dtype=dtype).to(device).eval()
        self.extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        self.device, self.dtype = device, dtype

    @torch.no_grad()
    def __call__(self, paths: Sequence[Path], size: int) -> Hidden:
        for start in range(0, len(paths), size):
            group = paths[start : start + size]
            audio = [soundfile.read(path, dtype="float32")[0] for path in group]
            made = self.extractor(audio, sampling_rate=RATE, padding=True, return_tensors="pt")
            inputs = {k: v.to(self.device) for k, v in made.items()}
            inputs["input_values"] = inputs["input_values"].to(self.dtype)
            states = self.model(**inputs, output_hidden_states=True).hidden_states
            frames = self.model._get_feat_extract_output_lengths(torch.tensor([len(a) for a in audio])).tolist()
            for row, path in enumerate(group):
                yield path.stem, [state[row, : frames[row]].float().cpu() for state in states]


def ours(upstream: Any, paths: Sequence[Path], batch_seconds: float, layers: Sequence[int] | None = None) -> Hidden:
    found = speechssl.extract(upstream, paths, batch_seconds=batch_seconds, layers=layers)
    return ((utterance.id, list(states)) for utterance, states in found)


def seconds_of(run: Callable[[], Any]) -> float:
    """How long it takes, iterated over to the end if it is an iterator; what comes is not kept, as when it is saved."""
    start = CLOCKS[0]()
    result = run()
    if isinstance(result, Iterator):
        deque(result, maxlen=0)
    return CLOCKS[0]() - start


@torch.no_grad()
def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Operations per second of the fastest product there is, as large as a feed-forward layer's."""
    rows, width, inner = (1024, 768, 3072) if device == "cpu" else (8192, 8192, 8192)
    x = torch.randn(rows, width, device=device, dtype=dtype)
    layers = [kind(width, inner, device=device, dtype=dtype) for kind in (torch.nn.Linear, Linear)]

    def run(layer: torch.nn.Module) -> None:
        layer(x)
        if device != "cpu":
            torch.cuda.synchronize()

    return 2 * rows * width * inner / min(seconds_of(lambda k=k: run(k)) for _ in range(20) for k in layers)


def operations(theirs: Theirs, paths: Sequence[Path]) -> float:
    """Of the unpadded files, matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        deque(theirs(paths, 1), maxlen=0)
    return float(counter.get_total_flops())


def largest_errors(found: Hidden, expected: dict[str, list[Tensor]]) -> tuple[float, float]:
    """Over files and hidden states: the largest difference, and the largest norm of a difference over the norm."""
    pairs = [(a, b) for name, states in found for a, b in zip(states, expected[name], strict=True)]
    return max(float((a - b).abs().max()) for a, b in pairs), max(float((a - b).norm() / b.norm()) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", default="wav2vec2_base")
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-seconds", type=float, default=None, help="by default extract's own for the device")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-time", action="store_true", help="count processor seconds instead of wall clock")
    args = parser.parse_args()
    if args.cpu_time:
        CLOCKS[0] = time.process_time
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        paths = write_files(root, args.files)
        seconds = sum(soundfile.info(path).duration for path in paths)
        save_upstream(build_upstream(*find_preset(args.upstream), seed=0), root / "ours")
        export_upstream(root / "ours", root / "theirs", to="transformers")
        measure(args, root, paths, seconds)


def measure(args: argparse.Namespace, root: Path, paths: Sequence[Path], seconds: float) -> None:
    full, half = torch.float32, torch.bfloat16
    theirs = {d: Theirs(root / "theirs", args.device, d) for d in (full, half)}
    mine = {d: speechssl.load_upstream(root / "ours", device=args.device, dtype=d) for d in (full, half)}
    batch_seconds = args.batch_seconds or (60.0 if args.device == "cpu" else 240.0)
    systems: dict[str, Callable[[], Hidden]] = {
        "transformers, padded by 8": lambda: theirs[full](paths, 8),
        "transformers, one by one": lambda: theirs[full](paths, 1),
        "transformers, bf16, padded by 8": lambda: theirs[half](paths, 8),
        "transformers, bf16, one by one": lambda: theirs[half](paths, 1),
        "speechssl, float32": lambda: ours(mine[full], paths, batch_seconds),
        "speechssl, bf16": lambda: ours(mine[half], paths, batch_seconds),
    }
    best, rates = dict.fromkeys(systems, float("inf")), {full: 0.0, half: 0.0}
    for _ in range(args.turns):
        for name, run in systems.items():
            best[name] = min(best[name], seconds_of(run))
        rates = {d: max(r, matrix_rate(args.device, d)) for d, r in rates.items()}
    needed = operations(theirs[full], paths)
    first, exact = next(iter(systems)), dict(systems["transformers, one by one"]())
    work = f"{needed / seconds / 1e9:.1f} GFLOP per second of audio"
    print(f"{args.upstream} on {args.device}, {len(paths)} files, {seconds:.0f} s, {work}")
    print(f"{'':34}{'x real time':>12}{'ratio':>8}{'of limit':>10}{'largest error':>15}{'relative':>10}")
    for name, took in best.items():
        limit = rates[half if "bf16" in name else full] / needed  # 1 / seconds for everything
        errors = largest_errors(systems[name](), exact)
        print(
            f"{name:34}{seconds / took:12.1f}{best[first] / took:8.2f}{1 / took / limit:10.0%}"
            f"{errors[0]:15.1e}{errors[1]:10.1e}"
        )
    depth = len(mine[full].hidden_sizes) - 1
    for layer in (0, depth // 4, depth // 2, depth):
        runs = [seconds_of(lambda k=layer: ours(mine[full], paths, batch_seconds, [k])) for _ in range(args.turns)]
        share = min(runs) / best["speechssl, float32"]
        print(f"speechssl, float32, layers=[{layer}]: {share:.0%} of the time for all layers")
    for dtype, rate in rates.items():
        print(f"matrix products in {dtype}: {rate / 1e9:.0f} GFLOP/s, limit {rate / needed * seconds:.1f} x real time")


if __name__ == "__main__":
    main()
