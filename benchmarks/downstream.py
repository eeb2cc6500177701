"""Downstream training beside S3PRL's protocol: a recipe's cost with features computed once, or at every step.

    python benchmarks/downstream.py                                  # all recipes, HuBERT base
    python benchmarks/downstream.py --only asr --precision float32
    python benchmarks/downstream.py --curve --size small             # whole runs beside each other, seconds of speech

S3PRL 0.4.18 itself can't be imported beside a current torchaudio, so its protocol is replayed: at every step the wavs
of a random batch are padded and go through the frozen upstream (transformers' HubertModel, float32, all hidden states,
as its `hubert_base` does with fairseq's code), the layers are stacked, weighted and summed, and the head follows, whose
LSTM layers read packed sequences. The other side is `speechssl run`: the cache, and `Fit` on it. Both have the same
random weights in upstream and head, the same utterances in the same batches, the same loss and the same optimiser; the
losses of the timed steps are compared.

A recipe's cost is what its numbers of steps and of utterances make of the seconds measured for one: S3PRL pays for the
upstream at every step, ours once per utterance. Reading counts on both sides, evaluating on neither. The last ratio
gives S3PRL our head: on a CPU torch's gradient of a packed LSTM takes time with the square of its steps. Utterances are
real speech, cut to the length that the recipe's corpus has on average (with its deviation); labels and texts are drawn.
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# oneDNN keeps what it compiled for 1024 shapes, which batches of many lengths exceed.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from speechssl.audio import read_audio
from speechssl.config import load_config
from speechssl.data.batching import derive_seed, make_generator
from speechssl.data.corpus import open_corpus
from speechssl.data.flac import SAMPLE_RATE, write_flac
from speechssl.data.manifests import Clip, write_corpus
from speechssl.fitting import Fit
from speechssl.head.recurrent import RecurrentHead
from speechssl.jobs import RunOptions, build_task, compute_features
from speechssl.loading import load_upstream
from speechssl.probe import seeded
from speechssl.runner import resolve_config
from speechssl.types import Utterance

SIZES = {
    "base": {},
    "small": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
        "feat_extract_norm": "layer", "do_stable_layer_norm": True,
    },
}  # fmt: skip
"""HuBERT as transformers builds it; 'small' is for curves: like the large one, it does not see the padding."""
SMALL_HEADS = {"asr": ("project_size=64", "hidden_size=64")}
LETTERS = list("abcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True)
class Recipe:
    """One recipe of S3PRL: SUPERB's settings of a task on its corpus."""

    task: str
    utterances: int
    """Of the training set."""
    seconds: float
    """Their mean length."""
    deviation: float
    batch: int
    """Utterances that one optimiser step sees (with accumulation)."""
    steps: int
    label: str
    """What is drawn: a label's name, 'text' or 'phones'."""
    target: float
    """How many times faster this is to be."""
    overrides: tuple[str, ...] = ()

    @property
    def passes(self) -> float:
        """Over the training set."""
        return self.steps * self.batch / self.utterances


RECIPES = {
    "keyword_spotting": Recipe("keyword_spotting", 51_094, 1.0, 0.0, 32, 200_000, "keyword", 50),
    "speaker_identification": Recipe("speaker_identification", 138_361, 8.0, 0.0, 32, 200_000, "speaker", 50),
    "intent_classification": Recipe("intent_classification", 23_132, 2.3, 0.8, 32, 200_000, "intent", 50),
    "emotion_recognition": Recipe("emotion_recognition", 3_556, 4.5, 2.5, 32, 30_000, "emotion", 50),
    "phoneme_recognition": Recipe(
        "phoneme_recognition", 28_539, 12.7, 3.6, 32, 100_000, "phones", 10, ("phones=labels",)
    ),
    "speaker_verification": Recipe("speaker_verification", 148_642, 8.0, 0.0, 50, 200_000, "speaker", 5),
    "asr": Recipe("asr", 28_539, 12.7, 3.6, 32, 200_000, "text", 3),
}


class StackedSum(nn.Module):
    """The weighted sum as S3PRL's Featurizer computes it: all layers stacked, then multiplied."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.detach().clone())

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(states))  # (K, B, T, D)
        flat = stacked.view(len(states), -1)
        return (torch.softmax(self.logits, dim=0)[:, None] * flat).sum(dim=0).view(stacked.shape[1:])


class FramewiseHead(nn.Module):
    """The linear head as S3PRL computes it: every frame is projected, then the mean is taken."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.project, self.output = copy.deepcopy(head.project), copy.deepcopy(head.output)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        frames = self.project(features)
        rows = [row[:length].mean(dim=0) for row, length in zip(frames, lengths.tolist(), strict=True)]
        return self.output(torch.stack(rows))  # type: ignore[no-any-return]


class PackedHead(nn.Module):
    """The recurrent head as S3PRL computes it: bidirectional LSTM layers over packed sequences."""

    def __init__(self, head: RecurrentHead) -> None:
        super().__init__()
        self.frame_rate = head.frame_rate
        self.project, self.dropout, self.output = map(copy.deepcopy, (head.project, head.dropout, head.output))
        self.layers = nn.ModuleList(_packed(layer) for layer in head.layers)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        states = self.project(features)
        for layer in self.layers:
            packed = pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False)
            states = self.dropout(pad_packed_sequence(layer(packed)[0], batch_first=True)[0])
        return self.output(states).float().log_softmax(dim=-1), lengths


def _packed(layer: Any) -> nn.LSTM:
    one = nn.LSTM(layer.ahead.input_size, layer.ahead.hidden_size, batch_first=True, bidirectional=True)
    for part, suffix in ((layer.ahead, ""), (layer.back, "_reverse")):
        for name, weight in part.named_parameters():
            getattr(one, name + suffix).data.copy_(weight)
    return one


def make_corpus(root: Path, recipe: Recipe, source: Path, *, count: int) -> Path:
    """Real speech of `source`, one stretch after the other, in utterances of the recipe's length."""
    rng = np.random.default_rng(0)
    stretch = iter(_stretches(source))
    rest = next(stretch)
    clips = []
    (root / "audio").mkdir(parents=True)
    for number in range(count + 8):
        length = max(0.5, rng.normal(recipe.seconds, recipe.deviation))
        samples = round(min(length, 2 * recipe.seconds) * SAMPLE_RATE)
        while len(rest) < samples:
            rest = torch.cat((rest, next(stretch)))
        waveform, rest = rest[:samples], rest[samples:]
        path = f"audio/{number:04}.flac"
        write_flac(root / path, waveform.numpy())
        clips.append(_clip(path, samples, recipe, number, rng))
    dev, test, train = clips[:4], clips[4:8], clips[8:]
    splits = {"train": train, "dev": dev, "test": test}
    if recipe.label == "speaker":
        splits |= {f"speaker_{name}": part for name, part in splits.items()}
    if recipe.task == "emotion_recognition":
        splits = {f"fold1_{name}": part for name, part in splits.items()} | splits
    write_corpus(root, splits, name="benchmark", source="debian", sources=[])
    return root


def _stretches(source: Path) -> Any:
    while True:
        for utterance in open_corpus(source).utterances("train"):
            yield torch.as_tensor(read_audio(utterance.path, start=utterance.start, duration=utterance.duration))


def _clip(path: str, samples: int, recipe: Recipe, number: int, rng: np.random.Generator) -> Clip:
    group = ("train", "dev", "test")[0 if number >= 8 else 1 if number < 4 else 2]
    speaker = f"{group}{number % 2}" if recipe.task == "speaker_verification" else f"s{number % 2}"
    seconds = samples / SAMPLE_RATE
    text = " ".join("".join(rng.choice(LETTERS, 4)) for _ in range(max(1, round(2.9 * seconds))))
    custom = {"keyword": f"k{number % 2}", "emotion": f"e{number % 2}", "intent": f"i{number % 2}"}
    custom |= {name: f"{name}{number % 2}" for name in ("action", "object", "location")}
    custom["phones"] = " ".join(rng.choice(["AA0", "B", "D", "IY1", "S", "T"], max(1, round(9.0 * seconds))))
    return Clip(f"u{number:04}", path, samples, "benchmark", "en", "CC0-1.0", text, text, speaker, custom)


class Theirs:
    """S3PRL's step: the upstream on padded wavs, stacked layers, the head."""

    def __init__(self, model: Any, fit: Fit) -> None:
        self.model, self.task, self.data, self.seed = model, fit.task, fit.data, fit.seed
        head: nn.Module = fit.probe.head
        if isinstance(head, RecurrentHead) and len(head.layers):
            head = PackedHead(head)
        elif hasattr(head, "project") and hasattr(head, "output") and not isinstance(head, RecurrentHead):
            head = FramewiseHead(head)
        self.head = copy.deepcopy(head)
        joined: Any = fit.probe.featurizer  # a weighted sum
        self.featurizer = StackedSum(joined.logits)
        parameters = [*self.featurizer.parameters(), *self.head.parameters()]
        kind = torch.optim.AdamW if fit.config.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = kind(parameters, lr=fit.config.learning_rate, weight_decay=fit.config.weight_decay)
        self.parameters, self.clip_norm = parameters, fit.config.clip_norm
        self.upstream_seconds: list[float] = []

    def step(self, utterances: Sequence[Utterance], number: int) -> float:
        """One optimiser step; returns the loss."""
        generator = make_generator(self.seed, "step", number)
        waveforms = [torch.as_tensor(read_audio(u.path, start=u.start, duration=u.duration)) for u in utterances]
        begin = time.perf_counter()
        padded = nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
        sizes = torch.tensor([len(w) for w in waveforms])
        with torch.no_grad():
            mask = torch.arange(padded.size(1))[None] < sizes[:, None]
            states = self.model(padded, attention_mask=mask.long(), output_hidden_states=True).hidden_states
        self.upstream_seconds.append(time.perf_counter() - begin)
        lengths = self.model._get_feat_extract_output_lengths(sizes)
        self.optimizer.zero_grad(set_to_none=True)
        with seeded(derive_seed(self.seed, "dropout", number)):
            inside = torch.arange(states[0].size(1))[None] < lengths[:, None]
            summed = self.featurizer(states) * inside[:, :, None]
            out = self.task.loss(self.head, summed, lengths, utterances, self.data, generator)
            loss = out.loss_sum / out.sample_size
            loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        return float(loss.detach())


@dataclass(frozen=True)
class Measured:
    """Seconds on both sides."""

    upstream_step: float
    step: float
    """Of S3PRL's protocol, upstream included."""
    features: float
    """For one utterance, once."""
    head_step: float
    difference: float
    """Largest difference of losses, relative."""


@dataclass(frozen=True)
class Sides:
    """Both, before their first step, and what they hear."""

    ours: Fit
    theirs: Theirs
    features: float
    """Seconds for one utterance, once."""

    def batches(self, number: int) -> list[list[Utterance]]:
        utterances = list(self.ours.data.splits["train"])
        stream = self.ours._batches(utterances)
        return [[utterances[i] for i in batch.indices] for batch, _ in zip(stream, range(number), strict=False)]


def prepare(recipe: Recipe, args: argparse.Namespace, folder: Path, *, count: int, seed: int = 0) -> Sides:
    """Makes a corpus of `count` utterances, computes their features, and gives both sides the same weights."""
    root = folder / "corpus"
    corpus = open_corpus(root if root.is_dir() else make_corpus(root, recipe, args.corpus, count=count))
    library: Any = transformers
    library.set_seed(0)
    model = library.HubertModel(library.HubertConfig(layerdrop=0.0, **SIZES[args.size])).eval()
    model.save_pretrained(folder / "upstream")
    upstream = load_upstream(folder / "upstream")
    small = SMALL_HEADS.get(recipe.task, ()) if args.size == "small" else ()
    name, config = resolve_config(recipe.task, overrides=[*recipe.overrides, *small])
    longest = 2.2 * recipe.seconds * recipe.batch
    config = load_config(config, overrides=[
        f"train.batch_seconds={longest}", f"train.max_batch_size={recipe.batch}", "train.evaluate_every=100000",
    ])  # fmt: skip
    task = build_task(name, config)
    data = task.prepare(corpus)
    for cache in ("warm", "cache"):
        begin = time.perf_counter()
        options = RunOptions(cache_folder=str(folder / f"{cache}{seed}"), precision=args.precision)
        store: Any = compute_features(upstream, task, data, options)
        features = (time.perf_counter() - begin) / len(store)
    run = folder / f"run{seed}"
    fit = Fit(task, data, dict.fromkeys(data.splits, store), seed=seed, folder=run, identity="benchmark")
    fit.folder.mkdir()
    return Sides(fit, Theirs(model, fit), features)


def measure(recipe: Recipe, args: argparse.Namespace, folder: Path) -> Measured:
    """Times both sides on one small corpus."""
    sides = prepare(recipe, args, folder, count=recipe.batch * (args.steps + 1))
    ours, other, losses = [], [], []
    for number, batch in enumerate(sides.batches(args.steps + 1), 1):
        begin = time.perf_counter()
        mine = sides.ours._step(batch)
        ours.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        losses.append((mine, sides.theirs.step(batch, number)))
        other.append(time.perf_counter() - begin)
    difference = max(abs(a - b) / abs(b) for a, b in losses)
    return Measured(
        statistics.mean(sides.theirs.upstream_seconds[1:]), statistics.mean(other[1:]), sides.features,
        statistics.mean(ours[1:]), difference,
    )  # fmt: skip


def follow(recipe: Recipe, args: argparse.Namespace, folder: Path) -> list[Any]:
    """Trains both to the end, over two batches of utterances and the recipe's number of passes: a row of the table."""
    sides = prepare(recipe, args, folder, count=2 * recipe.batch)
    steps = round(2 * recipe.passes)
    curves: dict[str, list[float]] = {"theirs": [], "ours": [], "other seed": []}
    seconds = dict.fromkeys(curves, 0.0)
    again = prepare(recipe, args, folder, count=2 * recipe.batch, seed=1)
    for number, (batch, other) in enumerate(zip(sides.batches(steps), again.batches(steps), strict=True), 1):
        turns = {
            "theirs": partial(sides.theirs.step, batch, number), "ours": partial(sides.ours._step, batch),
            "other seed": partial(again.ours._step, other),
        }  # fmt: skip
        for name, step in turns.items():
            begin = time.perf_counter()
            curves[name].append(step())
            seconds[name] += time.perf_counter() - begin
    tenths = {
        name: np.asarray(curve[: steps // 10 * 10]).reshape(10, -1).mean(axis=1) for name, curve in curves.items()
    }
    apart, noise = (np.abs(tenths["ours"] - tenths[name]).mean() for name in ("theirs", "other seed"))
    ours = seconds["ours"] + sides.features * 2 * recipe.batch
    ends = (f"{tenths[name][0]:.3f} -> {tenths[name][-1]:.3f}" for name in curves)
    return [steps, *ends, f"{apart:.4f}", f"{noise:.4f}", f"{seconds['theirs'] / ours:.1f}"]


def compare_curves(args: argparse.Namespace) -> None:
    """Prints how far apart the training losses are, beside what another seed of the head makes of them."""
    table = Table(
        "recipe", "steps", "S3PRL's loss", "ours", "ours, other seed", "apart", "seeds apart", "times faster",
        title=f"HuBERT {args.size}, our features in {args.precision}; losses are means over a tenth of the steps",
    )  # fmt: skip
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            table.add_row(name, *map(str, follow(RECIPES[name], args, Path(folder))))
        Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(RECIPES), default=list(RECIPES))
    parser.add_argument("--corpus", type=Path, default=Path("data/demo"), help="prepared corpus of real speech")
    parser.add_argument(
        "--precision", choices=["float32", "bf16"], default="bf16", help="of our features; heads: float32"
    )
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one that is not")
    parser.add_argument("--size", choices=SIZES, default="base", help="of HuBERT")
    parser.add_argument(
        "--curve", action="store_true",
        help="train both to the end instead, over two batches of utterances and the recipe's number of passes",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    quiet: Any = transformers.logging
    quiet.set_verbosity_error()
    if args.curve:
        compare_curves(args)
        return
    table = Table(
        "recipe", "passes", "S3PRL: step (upstream) s", "hours", "ours: features s/utt", "step s", "hours", "ratio",
        "wanted", "with our head", "losses differ",
        title=f"HuBERT base, {args.threads} threads, our features in {args.precision}",
    )  # fmt: skip
    for name in args.only:
        recipe = RECIPES[name]
        with tempfile.TemporaryDirectory() as folder:
            found = measure(recipe, args, Path(folder))
        theirs = recipe.steps * found.step / 3600
        ours = (recipe.utterances * found.features + recipe.steps * found.head_step) / 3600
        same_head = recipe.steps * (found.upstream_step + found.head_step) / 3600
        table.add_row(
            name, f"{recipe.passes:.0f}", f"{found.step:.2f} ({found.upstream_step:.2f})", f"{theirs:.0f}",
            f"{found.features:.3f}", f"{found.head_step:.4f}", f"{ours:.1f}", f"{theirs / ours:.1f}",
            f"{recipe.target:g}", f"{same_head / ours:.1f}", f"{found.difference:.1%}",
        )  # fmt: skip
        Console(width=160).print(table)


if __name__ == "__main__":
    main()
