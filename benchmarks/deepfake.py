"""Detection of spoofed speech: what a step of AASIST costs, and what each back-end is worth on each upstream.

    python benchmarks/deepfake.py speed                               # beside a plain loop over the published design
    python benchmarks/deepfake.py speed --size small                  # the same with a small model, in a minute
    python benchmarks/deepfake.py table -o exp/deepfake               # all back-ends, three upstreams, three seeds
    python benchmarks/deepfake.py table --only gmm lcnn --show        # nothing but the table of what is there

speed: the published SSL-AASIST with a frozen front-end computes the front-end at every step. This is replayed with
transformers' Wav2Vec2Model in float32: a batch of wavs is read, padded and goes through the model without gradients,
the last hidden state through AASIST, and Adam makes its step. The other side is `speechssl run`: the cache, and `Fit`
on it. Both have the same random weights in model and head, the same utterances in the same batches, the same loss,
dropout and optimiser, and take turns, step by step; the losses of the first step are compared. An utterance
goes through the model once on our side; what that costs is counted in the ratio of a whole run of so many epochs. The
published code repeats each waveform to 64,600 samples; here the loop has the shorter utterances as they are, unless
`--repeat` is given.

table: equal error rates on attacks that training never met, on the demo corpus: mean and deviation over the seeds.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import speechssl
from downstreams.deepfake_detection.config import HEADS
from speechssl.audio import read_audio
from speechssl.cache import FeatureCache
from speechssl.data.batching import derive_seed
from speechssl.data.corpus import open_corpus
from speechssl.fitting import Fit
from speechssl.jobs import RunOptions, build_task, compute_features
from speechssl.loading import load_upstream
from speechssl.probe import seeded
from speechssl.result import load_result
from speechssl.runner import resolve_config
from speechssl.task import Task, TaskData, take_share
from speechssl.types import Utterance

SIZES = {
    "base": {},
    "small": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    },
}  # fmt: skip
"""wav2vec 2.0 as transformers builds it."""
RATE = 16_000
PUBLISHED_SAMPLES = 64_600
BATCH = 14
"""Utterances, as SSL-AASIST."""
WARM = 2
"""Steps before those that are timed."""
EPOCHS = (1, 10, 100)
"""SSL-AASIST trains for 100."""
UPSTREAMS = ("fbank", "lfcc", "speechssl_tiny")
TASK = "deepfake_detection"


@dataclass
class PlainLoop:
    """A training step that computes the frozen model again."""

    model: Any
    """transformers'."""
    head: nn.Module
    task: Task
    data: TaskData
    repeat: bool

    def __post_init__(self) -> None:
        train = self.task.config.train
        self.optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay
        )

    def step(self, number: int, utterances: Sequence[Utterance]) -> float:
        """Makes a step and returns the loss."""
        waveform, lengths = self._read(utterances)
        with torch.no_grad():
            features = self.model(waveform).last_hidden_state
        frames = self.model._get_feat_extract_output_lengths(lengths)
        self.head.train()
        self.optimizer.zero_grad(set_to_none=True)
        with seeded(derive_seed(0, "dropout", number)):
            out = self.task.loss(self.head, features, frames, utterances, self.data, torch.Generator())
        loss = out.loss_sum / out.sample_size
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        nn.utils.clip_grad_norm_(self.head.parameters(), self.task.config.train.clip_norm)
        self.optimizer.step()
        return float(loss.detach())

    def _read(self, utterances: Sequence[Utterance]) -> tuple[Tensor, Tensor]:
        waveforms = [read_audio(u.path, sample_rate=RATE, start=u.start, duration=u.duration) for u in utterances]
        if self.repeat:
            waveforms = [w.repeat(-(-PUBLISHED_SAMPLES // w.numel()))[:PUBLISHED_SAMPLES] for w in waveforms]
        lengths = torch.tensor([w.numel() for w in waveforms])
        return nn.utils.rnn.pad_sequence(waveforms, batch_first=True), lengths


def speed(args: argparse.Namespace) -> None:
    """Times both sides, and prints seconds and ratios."""
    torch.manual_seed(0)
    config: Any = transformers.Wav2Vec2Config
    model: Any = transformers.Wav2Vec2Model(config(**SIZES[args.size]))
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        upstream = load_upstream(folder)
        overrides = [
            *HEADS["aasist"], "features.interface=single", f"features.layers=[{len(upstream.hidden_sizes) - 1}]",
            "features.normalize=false", f"train.max_batch_size={BATCH}", "train.batch_seconds=1000",
            f"train.steps={WARM + args.steps}", *(["head.window=4.0375"] if args.repeat else []),
        ]  # fmt: skip
        task = build_task(*resolve_config(f"{TASK}_demo", overrides=overrides))
        train = take_share(task.prepare(open_corpus(args.corpus)), args.share).splits["train"]
        data = TaskData({"train": train, "dev": train[:2], "test": train[:2]})
        if args.exact:
            cache = FeatureCache(f"{folder}/cache")
            store: Any = cache.features(upstream, train, layers=task.config.features.layers, dtype="float32")
        else:
            store = compute_features(upstream, task, data, RunOptions(cache_folder=f"{folder}/cache"))
        fit = Fit(task, data, dict.fromkeys(data.splits, store), seed=0, folder=Path(folder, "fit"), identity="speed")  # type: ignore[arg-type]  # it is frozen
        fit.folder.mkdir()
        plain = PlainLoop(model, copy.deepcopy(fit.probe.head), task, data, args.repeat)
        ours, theirs, apart = [], [], []
        for number, batch in enumerate(fit._batches(train), 1):
            if number > WARM + args.steps:
                break
            utterances = [train[i] for i in batch.indices]
            begin = time.perf_counter()
            loss = fit._step(utterances)
            between = time.perf_counter()
            other = plain.step(number, utterances)
            ours.append(between - begin)
            theirs.append(time.perf_counter() - between)
            apart.append(abs(loss - other))
        median_ours, median_theirs = (statistics.median(seconds[WARM:]) for seconds in (ours, theirs))
        _print_speed(median_ours, median_theirs, features=store.seconds / len(train), apart=apart[0])
        fit.features["train"].close()  # type: ignore[attr-defined]  # it is a store


def _print_speed(ours: float, theirs: float, *, features: float, apart: float) -> None:
    print(f"a step of {BATCH} utterances: {theirs:.3f} s plain, {ours:.3f} s from the cache: {theirs / ours:.1f} x")
    print(f"features of an utterance, once: {features:.4f} s; losses of the first step differ by {apart:.1e}")
    for epochs in EPOCHS:
        steps = epochs / BATCH  # per utterance
        ratio = steps * theirs / (steps * ours + features)
        print(f"a run of {epochs} epochs, features included: {ratio:.1f} x")


def table(args: argparse.Namespace) -> None:
    """Runs what is missing, and prints Markdown."""
    out = args.output / "runs"
    if not args.show:
        speechssl.run(
            f"{TASK}_demo", upstream=list(args.upstreams), corpus=args.corpus, heads=args.only, seeds=args.seeds,
            yaml=args.yaml, out=out, options=RunOptions(cache_folder=str(args.output / "cache"), jobs=args.jobs),
        )  # fmt: skip
    print("| back-end | " + " | ".join(f"{upstream}, EER ↓" for upstream in args.upstreams) + " |")
    print("|---|" + "---|" * len(args.upstreams))
    for head in args.only:
        cells = [_cell(out / TASK / upstream / f"head_{head}", args.seeds) for upstream in args.upstreams]
        print(f"| `{head}` | " + " | ".join(cells) + " |")


def _cell(folder: Path, seeds: Sequence[int]) -> str:
    """Mean, deviation over the seeds, and how many there are, where some are missing."""
    paths = [folder / f"seed{seed}" for seed in seeds]
    values = [100 * load_result(path).test.metrics["eer"].value for path in paths if (path / "result.json").is_file()]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    missing = "" if len(values) == len(seeds) else f" ({len(values)} seeds)"
    return f"{statistics.mean(values):.1f}{spread} %{missing}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("data/demo"))
    modes = parser.add_subparsers(required=True)
    timed = modes.add_parser("speed")
    timed.add_argument("--size", choices=sorted(SIZES), default="base")
    timed.add_argument("--steps", type=int, default=10)
    timed.add_argument("--share", type=float, default=0.1, help="of the utterances")
    timed.add_argument("--repeat", action="store_true", help="repeat waveforms to 64,600 samples, as published")
    timed.add_argument("--exact", action="store_true", help="keep features in float32, which shows that losses agree")
    timed.set_defaults(do=speed)
    shown = modes.add_parser("table")
    shown.add_argument("--only", nargs="+", choices=sorted(HEADS), default=list(HEADS))
    shown.add_argument("--upstreams", nargs="+", default=list(UPSTREAMS))
    shown.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    shown.add_argument("--yaml", type=Path, default=Path("recipes/demo/default/deepfake_detection.yaml"))
    shown.add_argument("--jobs", type=int, default=2)
    shown.add_argument("--show", action="store_true", help="train nothing, and print what there is")
    shown.add_argument("-o", "--output", type=Path, default=Path("exp/deepfake"))
    shown.set_defaults(do=table)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
