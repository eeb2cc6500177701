"""A training step of wav2vec 2.0 base in bfloat16 beside transformers and fairseq2, in one run.

The same batch for all, each with the model's own dropout, masks and distractors; forward, backward and Adam; weights in
float32 under autocast, and no layer drop, so that every step is of equal depth. Turns alternate, and each system's best
turn counts. The share of the machine's rate is that of the operations of our products, which are the fewest, over plain
products of the encoder's shape measured in the same run.

    python benchmarks/pretrain.py --seconds 15.6 --batch 4 --turns 3 --fairseq2 PYTHON
    python benchmarks/pretrain.py --device cuda --batch 32

fairseq2 stands in an environment of its own: PYTHON is an interpreter that can import it (and torch; nothing else).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch  # the setting must come first
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

RATE = 16_000
CLOCKS = [time.perf_counter]
"""What measures; `--cpu-time` replaces it, for a machine that others use (with one thread)."""
Step = Callable[[int], float]
"""Makes one update, given its number, and returns the loss per hidden frame."""


def make_batch(arguments: argparse.Namespace) -> torch.Tensor:
    """Noise with a moving level, (B, S)."""
    generator = torch.Generator().manual_seed(0)
    samples = round(arguments.seconds * RATE)
    waveform = 0.1 * torch.randn(arguments.batch, samples, generator=generator)
    return (waveform * torch.linspace(0.3, 1.0, samples)).to(arguments.device)


def autocast(device: str) -> Any:
    """bfloat16 where torch's lists allow it."""
    return torch.autocast(device, torch.bfloat16)


def ours(waveform: torch.Tensor, device: str) -> Step:
    """The objective as the training loop runs it."""
    from speechssl.loading import build_upstream
    from speechssl.objective import Labelling, PretrainInputs
    from speechssl.train.optim import make_optimizer, scale_gradients
    from speechssl.train.run import build_objective, pretrain_config

    _, config = pretrain_config("wav2vec2_base", overrides=["model.layerdrop=0"])
    upstream = build_upstream("wav2vec2", config.model, seed=0)
    upstream.name = "wav2vec2_base"
    objective = build_objective(upstream, config, Labelling()).train().to(device)
    optimizer = make_optimizer(objective.trained_parameters(), config.train)
    inputs = PretrainInputs(waveform, torch.full((len(waveform),), waveform.size(1), device=device))

    def step(number: int) -> float:
        objective.begin_step(number)
        generator = torch.Generator(device).manual_seed(number)
        with autocast(device):
            output = objective(inputs, generator)
        output.loss_sum.backward()
        scale_gradients(objective, 1.0 / output.sample_size, config.train.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float((output.loss_sum / output.sample_size).detach())

    return step


def transformers_step(waveform: torch.Tensor, device: str) -> Step:
    """transformers' Wav2Vec2ForPreTraining with its own functions for masks and distractors, as its example uses it."""
    import transformers
    from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices

    config = transformers.Wav2Vec2Config(layerdrop=0.0, activation_dropout=0.0, feat_proj_dropout=0.1)
    model = transformers.Wav2Vec2ForPreTraining(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-4, (0.9, 0.98), 1e-6, 0.01, fused=True)
    frames = int(model._get_feat_extract_output_lengths(torch.tensor(waveform.size(1))))

    def step(number: int) -> float:
        model.set_gumbel_temperature(max(2.0 * 0.999995**number, 0.5))
        shape = (len(waveform), frames)
        mask = _compute_mask_indices(shape, 0.65, 10, min_masks=2)
        negatives = _sample_negative_indices(shape, config.num_negatives, mask)
        with autocast(device):
            output = model(
                waveform,
                mask_time_indices=torch.from_numpy(mask).to(device),
                sampled_negative_indices=torch.from_numpy(negatives).to(device, torch.int64),
            )
        (output.loss / float(mask.sum())).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(output.loss.detach()) / float(mask.sum())

    return step


def fairseq2_step(waveform: torch.Tensor, device: str) -> Step:
    """fairseq2's model and its own loss."""
    from fairseq2.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2EncoderConfig, create_wav2vec2_model
    from fairseq2.nn import BatchLayout

    encoder = Wav2Vec2EncoderConfig(layer_drop_p=0.0, first_pass_dropout_p=0.1)
    model = create_wav2vec2_model(Wav2Vec2Config(encoder_config=encoder, max_temporal_mask_prob=0.65))
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-4, (0.9, 0.98), 1e-6, 0.01, fused=True)
    layout = BatchLayout.of(waveform)

    def step(_number: int) -> float:
        with autocast(device):
            loss, output = model(waveform, layout)
        (loss.aggregate / output.num_targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.aggregate.detach()) / output.num_targets

    return step


SYSTEMS = {"speechssl": ours, "transformers": transformers_step, "fairseq2": fairseq2_step}


def wait(device: str) -> None:
    """Until the device has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure(step: Step, arguments: argparse.Namespace, first: int) -> tuple[float, float]:
    """Seconds per step over one turn, and the last loss."""
    wait(arguments.device)
    begin = CLOCKS[0]()
    loss = 0.0
    for number in range(first, first + arguments.steps):
        loss = step(number)
    wait(arguments.device)
    return (CLOCKS[0]() - begin) / arguments.steps, loss


class Remote:
    """A system in a process of its own, which steps when it is told to."""

    def __init__(self, interpreter: str, name: str, arguments: argparse.Namespace) -> None:
        options = [f"--{key}={getattr(arguments, key)}" for key in ("seconds", "batch", "steps", "device", "threads")]
        options += ["--cpu-time"] if arguments.cpu_time else []
        self.process = subprocess.Popen(
            [interpreter, __file__, "--serve", name, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, first: int) -> tuple[float, float]:
        """One turn."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("The process has no pipes.")
        self.process.stdin.write(f"{first}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("turn "):
                seconds, loss = json.loads(line.removeprefix("turn "))
                return float(seconds), float(loss)
        raise SystemExit(f"{self.process.args} ended with {self.process.wait()}.")

    def close(self) -> None:
        """Ends the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


def serve(name: str, arguments: argparse.Namespace) -> None:
    """Steps of one system, a turn for each line that comes in."""
    step = SYSTEMS[name](make_batch(arguments), arguments.device)
    for line in sys.stdin:
        print("turn " + json.dumps(measure(step, arguments, int(line))), flush=True)


def product_rate(device: str, frames: int) -> float:
    """Operations per second of bfloat16 products of the encoder's widest shape."""
    x = torch.randn(frames, 768, dtype=torch.bfloat16, device=device)
    w = torch.randn(768, 3072, dtype=torch.bfloat16, device=device)
    repeats, best = (50 if device == "cuda" else 10), float("inf")
    for _ in range(5):
        wait(device)
        begin = CLOCKS[0]()
        for _ in range(repeats):
            x @ w
        wait(device)
        best = min(best, (CLOCKS[0]() - begin) / repeats)
    return 2 * frames * 768 * 3072 / best


def operations(step: Step) -> float:
    """Of all products of a step."""
    with FlopCounterMode(display=False) as counter:
        step(0)
    return float(counter.get_total_flops())


def largest(step: Step, device: str, count: int) -> list[tuple[str, float]]:
    """The operators that take the largest shares of a step's own time."""
    on_gpu = device == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as found:
        step(10_000)
        wait(device)
    times = {e.key: float(e.self_device_time_total if on_gpu else e.self_cpu_time_total) for e in found.key_averages()}
    total = sum(times.values())
    ranked = sorted(times.items(), key=lambda item: -item[1])
    return [(name, time_ / total) for name, time_ in ranked[:count]]


def main() -> None:
    """Measures in turns and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15.6, help="of each utterance")
    parser.add_argument("--batch", type=int, default=4, help="utterances")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="per turn")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's own choice")
    parser.add_argument("--fairseq2", default=None, metavar="PYTHON")
    parser.add_argument("--cpu-time", action="store_true", help="measure the process's time; with --threads 1")
    parser.add_argument("--operators", type=int, default=12, help="of each system here, the largest")
    parser.add_argument("--serve", default=None, choices=tuple(SYSTEMS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.cpu_time:
        CLOCKS[0] = time.process_time
    if arguments.serve:
        serve(arguments.serve, arguments)
        return
    compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """All systems, turn by turn."""
    waveform, device = make_batch(arguments), arguments.device
    steps = {name: SYSTEMS[name](waveform, device) for name in ("speechssl", "transformers")}
    work = operations(steps["speechssl"])
    rate = product_rate(device, arguments.batch * round(arguments.seconds * 50))
    turns: dict[str, Callable[[int], tuple[float, float]]] = {
        name: lambda first, step=step: measure(step, arguments, first) for name, step in steps.items()
    }
    remote = None
    if arguments.fairseq2:
        remote = turns["fairseq2"] = Remote(arguments.fairseq2, "fairseq2", arguments)
    for turn in turns.values():  # kernels are compiled for their shapes, memory is taken
        turn(0)
    best = dict.fromkeys(turns, float("inf"))
    losses: dict[str, float] = {}
    for number in range(arguments.turns):
        for name, turn in turns.items():
            seconds, losses[name] = turn(1 + number * arguments.steps)
            best[name] = min(best[name], seconds)
    audio = arguments.batch * arguments.seconds
    print(f"{arguments.batch} x {arguments.seconds} s, {device}, {torch.get_num_threads()} threads, bf16 autocast")
    print(f"{work / audio / 1e9:.1f} GFLOP per second of audio, products at {rate / 1e9:.0f} GFLOP/s")
    print(f"{'':14}{'s/step':>9}{'audio s/s':>11}{'of products':>13}{'ours is':>10}{'loss':>8}")
    for name, seconds in best.items():
        share, ratio = work / seconds / rate, seconds / best["speechssl"]
        print(f"{name:14}{seconds:9.2f}{audio / seconds:11.2f}{share:12.0%} {ratio:8.2f} x{losses[name]:8.3f}")
    for name, step in steps.items():
        found = "\n".join(
            f"  {share:6.1%}  {operator}" for operator, share in largest(step, device, arguments.operators)
        )
        print(f"largest of {name}:\n{found}")
    if remote is not None:
        remote.close()


if __name__ == "__main__":
    main()
