"""Nearest frames beside a plain search as kNN-VC does it: all cosine distances through `torch.cdist`, then topk.

python benchmarks/knn.py            # 5 minutes against 30 minutes of WavLM-Large frames; the plain search needs 18 GB
python benchmarks/knn.py --source-minutes 1 --reference-minutes 5
python benchmarks/knn.py --faiss    # faiss's exact index too (pip install 'speechssl[faiss]')

Frames are made as those of `kmeans.py`. Each turn searches once with each; the best of the turns counts, and the peak
of the memory taken beside the frames. Ours is timed twice: with everything made anew, and with a pool made before.
"""

import argparse
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from kmeans import make_frames
from torch import Tensor

from speechssl.neighbours import MEMORY_MB, ReferencePool, nearest

FRAME_RATE = 50  # Hz


def plain(source: Tensor, reference: Tensor, k: int) -> Tensor:
    """Cosine distances from Euclidean ones by |a - b|² = |a|² + |b|² - 2 a·b, as in https://github.com/bshall/knn-vc."""
    lengths, others = source.norm(dim=1)[:, None], reference.norm(dim=1)[None]
    products = (lengths**2 + others**2 - torch.cdist(source, reference) ** 2) / 2
    distances: Tensor = 1 - products / (lengths * others)  # (T, N)
    return distances.topk(k, dim=1, largest=False).indices


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measure(search: Callable[[], Tensor]) -> tuple[float, int, Tensor]:
    """Seconds, peak bytes beyond those held before, and what was found."""
    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    found = search()
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    return seconds, max(peak, before) - before, found


def disagreement(found: Tensor, expected: Tensor, source: Tensor, reference: Tensor) -> tuple[int, float]:
    """Source frames with other neighbours, and the largest difference of a cosine (float64) among these."""
    rows = (found.sort(dim=1).values != expected.sort(dim=1).values).any(dim=1).nonzero()[:, 0]

    def cosines(indices: Tensor) -> Tensor:
        return torch.cosine_similarity(source[rows, None].double(), reference[indices[rows]].double(), dim=2)

    worst = (cosines(found) - cosines(expected)).sort(dim=1).values.abs().max() if len(rows) else torch.zeros(())
    return len(rows), float(worst)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source-minutes", type=float, default=5)
    parser.add_argument("--reference-minutes", type=float, default=30)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--memory-mb", type=int, default=MEMORY_MB)
    parser.add_argument("--random", action="store_true", help="Gaussian frames instead")
    parser.add_argument("--faiss", action="store_true")
    args = parser.parse_args()
    count, others = (round(60 * minutes * FRAME_RATE) for minutes in (args.source_minutes, args.reference_minutes))
    if args.random:
        frames = torch.randn(count + others, args.width, generator=torch.Generator().manual_seed(0))
    else:
        frames = make_frames(count + others, args.width)
    source, reference = frames[:count], frames[count:]
    pool = ReferencePool(reference, memory_mb=args.memory_mb)
    searches: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: plain(source, reference, args.k),
        "nearest": lambda: nearest(source, reference, k=args.k, memory_mb=args.memory_mb),
        "ReferencePool": lambda: pool.search(source, k=args.k),
    }
    if args.faiss:
        index = ReferencePool(reference, memory_mb=args.memory_mb, backend="faiss")
        searches["faiss"] = lambda: index.search(source, k=args.k)
    seconds = dict.fromkeys(searches, float("inf"))
    peaks = dict.fromkeys(searches, 0)
    found: dict[str, Tensor] = {}
    for _ in range(args.turns):
        for name, search in searches.items():
            taken, peak, found[name] = measure(search)
            seconds[name], peaks[name] = min(seconds[name], taken), max(peaks[name], peak)

    print(
        f"{count} source frames, {others} reference frames x {args.width}, k = {args.k}, memory_mb = {args.memory_mb}"
    )
    print(f"{torch.get_num_threads()} threads, products in {pool.dtype}, best of {args.turns}")
    for name in searches:
        differ, worst = disagreement(found[name], found["plain"], source, reference)
        print(
            f"{name:14s} {seconds[name]:7.2f} s  {seconds['plain'] / seconds[name]:5.1f} x"
            f"  peak {peaks[name] / 1e6:8.0f} MB"
            f"  frames with other neighbours than plain: {differ}, their cosines {worst:.1e} apart"
        )


if __name__ == "__main__":
    main()
