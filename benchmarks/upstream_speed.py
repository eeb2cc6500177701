"""Feature extraction with hubert_base: ours (bucketed, masked) against transformers' (padded batches, one by one).

Same random weights, same utterances of mixed length, same process; also the training step of hubert_tiny.

    python benchmarks/upstream_speed.py --seconds 120 --threads 2
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence

import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechssl.checkpoint import save_upstream
from speechssl.export import export_upstream
from speechssl.loading import load_upstream

RATE = 16_000
CLOCKS = [time.perf_counter]
"""What measures; `--cpu-time` replaces it, for a machine that others use (with one thread)."""


def utterances(seconds: float) -> list[Tensor]:
    """Noise of 1 to 15 s, log-normal around 4 s as read speech is, `seconds` in all."""
    generator = torch.Generator().manual_seed(0)
    result: list[Tensor] = []
    while sum(len(w) for w in result) < seconds * RATE:
        duration = float((1.4 + 0.6 * torch.randn((), generator=generator)).exp().clamp(1.0, 15.0))
        result.append(0.1 * torch.randn(int(duration * RATE), generator=generator))
    return result


def batches(waveforms: Sequence[Tensor], batch_seconds: float) -> list[tuple[Tensor, Tensor]]:
    """Pads consecutive utterances to batches of at most `batch_seconds`."""
    result: list[list[Tensor]] = [[]]
    for waveform in waveforms:
        longest = max([len(waveform), *(len(w) for w in result[-1])])
        if result[-1] and longest * (len(result[-1]) + 1) > batch_seconds * RATE:
            result.append([])
        result[-1].append(waveform)
    return [(pad_sequence(b, batch_first=True), torch.tensor([len(w) for w in b])) for b in result]


@torch.no_grad()
def speed(run: Callable[[Tensor, Tensor], object], work: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Seconds of audio per second."""
    run(*work[0])
    start = CLOCKS[0]()
    for waveform, lengths in work:
        run(waveform, lengths)
    return sum(int(lengths.sum()) for _, lengths in work) / RATE / (CLOCKS[0]() - start)


def training_speed() -> float:
    upstream = load_upstream("hubert_tiny", random_weights=0).train()
    waveform = 0.1 * torch.randn(15, 4 * RATE, generator=torch.Generator().manual_seed(0))
    lengths = torch.full((15,), 4 * RATE)
    best = float("inf")
    for _ in range(8):
        start = CLOCKS[0]()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features, frames = upstream.extract_features(waveform, lengths)
            mask = torch.arange(features.size(1)).expand(15, -1) % 20 < 11
            out = upstream.encode(features, frames, mask=mask, layers=frozenset({upstream.config.depth}))
        out[upstream.config.depth].float().square().mean().backward()
        upstream.zero_grad()
        best = min(best, CLOCKS[0]() - start)
    return 60.0 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="count processor seconds instead of wall clock")
    args = parser.parse_args()
    if args.cpu_time:
        CLOCKS[0] = time.process_time
    torch.set_num_threads(args.threads)
    waveforms = utterances(args.seconds)
    single = [(w[None], torch.tensor([len(w)])) for w in waveforms]
    padded = batches(waveforms, 60.0)
    bucketed = batches(sorted(waveforms, key=len), 20.0)
    print(f"hubert_base, {len(waveforms)} utterances; seconds of audio per second")
    for dtype in (torch.bfloat16, torch.float32):
        ours = load_upstream("hubert_base", random_weights=0, dtype=dtype)
        with tempfile.TemporaryDirectory() as folder:
            save_upstream(load_upstream("hubert_base", random_weights=0), f"{folder}/ours")
            export_upstream(f"{folder}/ours", f"{folder}/theirs", to="transformers")
            theirs = transformers.HubertModel.from_pretrained(f"{folder}/theirs", dtype=dtype).eval()

        def run_theirs(waveform: Tensor, lengths: Tensor, model=theirs, dtype=dtype) -> object:
            mask = torch.arange(waveform.size(1)) < lengths[:, None]
            return model(waveform.to(dtype), attention_mask=mask.long(), output_hidden_states=True)

        results = {
            "ours, bucketed": speed(ours, bucketed),
            "transformers, padded": speed(run_theirs, padded),
            "transformers, one by one": speed(run_theirs, single),
        }
        for name, value in results.items():
            print(f"  {dtype!s:15} {name:26} {value:7.1f}   ours is {results['ours, bucketed'] / value:.2f} x")
    tiny = load_upstream("hubert_tiny", random_weights=0, dtype=torch.bfloat16)
    print(f"hubert_tiny bfloat16 extraction {speed(tiny, bucketed):.0f}, training step {training_speed():.0f}")


if __name__ == "__main__":
    main()
