"""k-means beside scikit-learn's MiniBatchKMeans with fairseq's settings, in the same run.

python benchmarks/kmeans.py --frames 200000 --size 768 --clusters 500     # the figure of the README
python benchmarks/kmeans.py                                               # scaled down
"""

import argparse
import time
import warnings

import torch
from sklearn.cluster import MiniBatchKMeans

from speechssl.data.batching import make_generator
from speechssl.targets.lloyd import KMeansConfig, fit_kmeans


def make_frames(frames: int, size: int) -> torch.Tensor:
    """Frames that move slowly between 2000 points of a low-dimensional space, as speech features do."""
    generator = make_generator(0)
    points = torch.randn(2000, 16, generator=generator)[torch.randint(2000, (frames // 5 + 1,), generator=generator)]
    path = points.repeat_interleave(5, dim=0)[:frames] + 0.3 * torch.randn(frames, 16, generator=generator)
    lift = torch.randn(16, size, generator=generator) / 4
    return torch.tanh(path @ lift) + 0.1 * torch.randn(frames, size, generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--clusters", type=int, default=100)
    args = parser.parse_args()
    features = make_frames(args.frames, args.size)

    begin = time.perf_counter()
    _, inertia = fit_kmeans(features, KMeansConfig(clusters=args.clusters), generator=make_generator(1))
    ours = time.perf_counter() - begin

    # fairseq examples/hubert/simple_kmeans/learn_kmeans.py
    peer = MiniBatchKMeans(
        args.clusters, init="k-means++", max_iter=100, batch_size=10_000, tol=0.0, max_no_improvement=100,
        n_init=20, reassignment_ratio=0.0, random_state=0, compute_labels=False,
    )  # fmt: skip
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer.fit(features.numpy())
    theirs = time.perf_counter() - begin
    reference = -peer.score(features.numpy()) / len(features)

    print(f"{args.frames} frames x {args.size}, {args.clusters} clusters, {torch.get_num_threads()} threads")
    print(f"speechssl               {ours:8.2f} s   inertia {inertia:.4f}")
    print(f"MiniBatchKMeans         {theirs:8.2f} s   inertia {reference:.4f}")
    print(f"{theirs / ours:.1f} times faster, inertia {100 * (inertia / reference - 1):+.2f} %")


if __name__ == "__main__":
    main()
