"""Epochs over a frozen upstream: recomputed each time, as S3PRL does, or computed once and read from the cache.

    python benchmarks/feature_cache.py --upstream hubert_tiny --epochs 5

Both sides read the same files and end in a weighted sum of all layers with its backward pass. The recomputing side
follows S3PRL's runner: random batches of 4, padded, every layer of every batch computed anew, layers stacked and
multiplied by their weights. The caching side batches by duration and adds layer to layer. Prints seconds per epoch,
from which epoch on the cache has paid for its filling, and the two weighted sums alone on equal input.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from speechssl.audio import read_audio
from speechssl.cache import FeatureCache
from speechssl.data.batching import bucket_batches
from speechssl.feature_store import FeatureStore
from speechssl.featurizer.weighted_sum import WeightedSum
from speechssl.loading import load_upstream
from speechssl.types import Utterance
from speechssl.upstream import Upstream

RATE = 16_000
S3PRL_BATCH = 4


def make_audio(folder: Path, count: int) -> list[Utterance]:
    """Noise of 1 to 13 seconds, spread as read speech is."""
    rng = np.random.default_rng(0)
    utterances = []
    for i, seconds in enumerate(np.clip(rng.normal(6.0, 3.0, count), 1.0, 13.0)):
        path = folder / f"{i}.flac"
        soundfile.write(path, rng.uniform(-0.3, 0.3, round(seconds * RATE)), RATE)
        utterances.append(Utterance(str(i), str(path), duration=round(seconds * RATE) / RATE))
    return utterances


class StackedSum(nn.Module):
    """The weighted sum as S3PRL's Featurizer computes it: all layers stacked, then multiplied."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_layers))

    def forward(self, states: list[Tensor]) -> Tensor:
        stacked = torch.stack(states)  # (K, B, T, D)
        flat = stacked.view(len(states), -1)
        return (torch.softmax(self.logits, dim=0)[:, None] * flat).sum(dim=0).view(stacked.shape[1:])


def recompute_epoch(upstream: Upstream, utterances: list[Utterance], generator: torch.Generator) -> None:
    weighted = StackedSum(len(upstream.hidden_sizes))
    order = torch.randperm(len(utterances), generator=generator).tolist()
    for begin in range(0, len(order), S3PRL_BATCH):
        waveforms = [read_audio(utterances[i].path, sample_rate=RATE) for i in order[begin : begin + S3PRL_BATCH]]
        lengths = torch.tensor([w.numel() for w in waveforms])
        with torch.no_grad():
            out = upstream(nn.utils.rnn.pad_sequence(waveforms, batch_first=True), lengths)
        weighted(list(out.hidden_states)).sum().backward()


def cached_epoch(store: FeatureStore, utterances: list[Utterance], generator: torch.Generator) -> None:
    weighted = WeightedSum(store.num_layers, store.hidden_size)
    durations = [u.duration or 0.0 for u in utterances]
    for batch in bucket_batches(durations, batch_seconds=6.0 * S3PRL_BATCH, generator=generator):
        features, _ = store.batch([utterances[i].id for i in batch])
        weighted(features).sum().backward()


def seconds(work: Callable[[], object], times: int = 1) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - begin) / times


def sums(layers: int, shape: tuple[int, int, int], times: int) -> tuple[float, float]:
    states = list(torch.randn(layers, *shape, generator=torch.Generator().manual_seed(0)))
    running, stacked = WeightedSum(layers, shape[-1]), StackedSum(layers)
    torch.testing.assert_close(running(states), stacked(states), atol=1e-5, rtol=1e-4)
    return (
        seconds(lambda: running(states).sum().backward(), times),
        seconds(lambda: stacked(states).sum().backward(), times),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--upstream", default="hubert_tiny")
    parser.add_argument("--utterances", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    upstream = load_upstream(options.upstream, random_weights=0)
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        utterances = make_audio(Path(name), options.utterances)
        recompute = seconds(lambda: recompute_epoch(upstream, utterances, generator), options.epochs)
        cache = FeatureCache(Path(name) / "cache")
        fill = seconds(lambda: cache.features(upstream, utterances))
        store = cache.features(upstream, utterances)
        reopen = store.seconds
        cached = seconds(lambda: cached_epoch(store, utterances, generator), options.epochs)
        get = seconds(lambda: store.get("0"), 10_000)
        size = cache.entries()[0].gigabytes
    running, stacked = sums(13, (8, 500, 768), 3)
    audio = sum(u.duration or 0.0 for u in utterances)
    table = Table("", "seconds", title=f"{options.upstream}, {audio:.0f} s of audio, {torch.get_num_threads()} threads")
    table.add_row("epoch, recomputed", f"{recompute:.3f}")
    table.add_row("filling the cache, once", f"{fill:.3f}")
    table.add_row("opening the filled cache", f"{reopen:.3f}")
    table.add_row("epoch, cached", f"{cached:.3f}")
    table.add_row("one utterance, `get`", f"{get:.1e}")
    table.add_row("weighted sum 13 x (8, 500, 768), stacked", f"{stacked:.4f}")
    table.add_row("weighted sum 13 x (8, 500, 768), running", f"{running:.4f}")
    console = Console()
    console.print(table)
    console.print(f"An epoch is {recompute / cached:.1f} times faster cached; {size * 1e3:.1f} MB on disk.")
    console.print(f"The cache has paid after {fill / max(recompute - cached, 1e-9):.1f} epochs.")
    console.print(f"The running sum is {stacked / running:.1f} times faster than the stacked one.")


if __name__ == "__main__":
    main()
