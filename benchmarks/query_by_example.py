"""Times the search for spoken queries beside a plain loop over pairs, as S3PRL's quesst14_dtw runs it in each process.

    python benchmarks/query_by_example.py

The plain loop is scipy's cosine distances and dtw-python (`pip install dtw-python`) as in S3PRL 0.4.18, or librosa's
dynamic time warping with the same steps where dtw-python is not there. It gets a sample of the pairs; S3PRL runs one
such loop on each core, so both sides are timed on one thread by default. The features are random: the cost does not
depend on them. Both must give the same distances, and the largest difference is printed.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from speechssl.alignment.search import search_distances

FRAME_RATE = 50  # Hz

Floats = NDArray[np.floating]


def plain_warp() -> tuple[str, Callable[[Floats], float]]:
    """The name of the plain loop's warping, and the distance it gives for costs (N, M)."""
    try:
        from dtw import dtw  # type: ignore[import-not-found, unused-ignore]  # not a dependency
    except ImportError:
        import librosa

        steps, ones, zeros = np.array([[1, 0], [1, 1], [1, 2]]), np.ones(3), np.zeros(3)

        def by_librosa(costs: Floats) -> float:
            table = librosa.sequence.dtw(
                C=costs, step_sizes_sigma=steps, weights_mul=ones, weights_add=zeros, subseq=True, backtrack=False
            )
            return float(table[-1].min()) / len(costs)

        return "librosa", by_librosa

    def by_dtw_python(costs: Floats) -> float:
        return float(dtw(x=costs, step_pattern="asymmetric", open_begin=True, open_end=True).normalizedDistance)

    return "dtw-python", by_dtw_python


def plain_distance(query: Floats, document: Floats, warp: Callable[[Floats], float]) -> float:
    costs = np.exp(cdist(query, document, "cosine")) - 1
    low, high = costs.min(1)[:, None], costs.max(1)[:, None]
    return warp((costs - low) / np.clip(high - low, 1e-9, np.inf))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=13)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--queries", type=int, default=12)
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--query-seconds", type=float, default=1.5)
    parser.add_argument("--document-seconds", type=float, default=6.0)
    parser.add_argument("--plain-pairs", type=int, default=60, help="pairs that the plain loop gets")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)

    def features(count: int, seconds: float) -> list[torch.Tensor]:
        frames = rng.uniform(0.5 * seconds, 1.5 * seconds, count) * FRAME_RATE
        shapes = [(arguments.layers, max(5, int(t)), arguments.width) for t in frames]
        return [torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) for shape in shapes]

    queries = features(arguments.queries, arguments.query_seconds)
    documents = features(arguments.documents, arguments.document_seconds)
    name, warp = plain_warp()
    search_distances(queries[:1], documents[:1], device=arguments.device)  # compiles the kernel, or starts the device
    warp(np.ones((5, 9)))

    begin = time.perf_counter()
    found = search_distances(queries, documents, device=arguments.device)
    ours = (time.perf_counter() - begin) / found.numel()

    places = [tuple(rng.integers(found.shape)) for _ in range(arguments.plain_pairs)]
    begin = time.perf_counter()
    plain = [plain_distance(queries[q][k].numpy(), documents[d][k].numpy(), warp) for k, q, d in places]
    loop = (time.perf_counter() - begin) / len(places)

    difference = max(abs(value - float(found[place])) for value, place in zip(plain, places, strict=True))
    print(f"speechssl on {arguments.device}: {1e3 * ours:.3f} ms a pair and layer ({found.numel()} of them)")
    print(f"plain loop with {name}: {1e3 * loop:.3f} ms a pair and layer ({len(places)} of them)")
    print(f"ratio {loop / ours:.1f}, largest difference {difference:.1e}, threads {arguments.threads}")


if __name__ == "__main__":
    main()
