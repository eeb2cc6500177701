"""Fits one head on cached features: the inner part of `speechssl run`.

Each step is a function of (seed, step) alone, so that a run that was interrupted goes on from its last evaluation on
dev and ends with the same weights. The best weights are those of the best evaluation on dev; test is looked at once.
K layers, B batch, T frames, D width.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from speechssl.checkpoint import save_tensors
from speechssl.crops import choose_crops, training_crops
from speechssl.data.balance import Balance
from speechssl.data.batching import BatchStream, bucket_batches, derive_seed, make_generator
from speechssl.errors import DivergedError, SpeechsslError
from speechssl.featurizer.build import build_featurizer
from speechssl.featurizer.interface import Interface
from speechssl.files import replacing
from speechssl.result import Evaluation
from speechssl.task import Task, TaskData, TrainConfig
from speechssl.types import Utterance

logger = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.pt"
HEAD = "head.safetensors"
LOG = "log.jsonl"
POINTS = 200  # of the training loss curve, at most about

Report = Callable[[int, str], None]
"""report(steps done since the last call, note such as the loss)."""


class Features(Protocol):
    """What fitting needs of `speechssl.cache.FeatureStore`."""

    frame_rate: float
    layers: tuple[int, ...]
    """Which hidden states, ascending; row k of every array is layer `layers[k]`."""

    @property
    def num_layers(self) -> int:
        """K."""

    @property
    def hidden_size(self) -> int:
        """D."""

    def get(self, utterance_id: str) -> Tensor:
        """(K, T, D), or (K, D) where pooled."""

    def batch(self, utterance_ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(K, B, T, D), or (K, B, D) where pooled, and the valid frames (B,)."""


class Probe(nn.Module):
    """What is trained on a frozen upstream: what joins its layers, and a head."""

    def __init__(self, featurizer: Interface, head: nn.Module) -> None:
        super().__init__()
        self.featurizer = featurizer
        self.head = head

    def trained_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


@runtime_checkable
class MeasuresFeatures(Protocol):
    """A task that measures the layers themselves, rather than what its head predicts from them."""

    def measure(  # noqa: PLR0917  what `Task.evaluate` gets, and where the predictions would come from
        self,
        probe: Probe,
        features: Features,
        data: TaskData,
        split: str,
        folder: Path,
        note: Callable[[str], None],
    ) -> Evaluation:
        """Measures one split, 'dev' before 'test'.

        Args:
            probe: what dev chooses may be put into it: it is saved after test.
            features: holds the utterances of all splits.
            folder: as in `Task.evaluate`.
            note: shows how far it is.
        """


@dataclass
class Progress:
    """Where a run stands; saved at every evaluation."""

    step: int = 0
    best_step: int = 0
    best: float | None = None
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    stream: dict[str, int] | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "evaluate": 0.0})

    def point(self, curve: str, value: float) -> None:
        """Adds a point at the current step."""
        self.curves.setdefault(curve, []).append((self.step, value))


@dataclass(frozen=True)
class Fitted:
    """A finished run: its best weights are in the probe."""

    progress: Progress
    dev: Evaluation
    test: Evaluation


def build_probe(task: Task, data: TaskData, *, num_layers: int, size: int, frame_rate: float, seed: int) -> Probe:
    """Makes what joins the layers, and the head; equal seeds give equal weights, and no global state is touched."""
    with seeded(derive_seed(seed, "featurizer")):
        featurizer = build_featurizer(task.config.features, num_layers, size)
    with seeded(derive_seed(seed, "head")):
        head = task.build_head(featurizer.hidden_size, frame_rate, data)
    return Probe(featurizer, head)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Dropout and initialisation draw from torch's default generators, which are seeded here and put back after."""
    with torch.random.fork_rng():
        torch.random.manual_seed(seed)
        yield


class Fit:
    """One run of one task: a probe, its data and its folder."""

    def __init__(
        self,
        task: Task,
        data: TaskData,
        features: Mapping[str, Features],
        *,
        seed: int,
        folder: Path,
        identity: str,
        device: str = "cpu",
        report: Report | None = None,
    ) -> None:
        """
        Args:
            features: split -> store that holds its utterances.
            folder: for the checkpoint, the log and the best head.
            identity: what decides the numbers; a checkpoint of another identity is not gone on from.
        """
        self.task, self.data, self.features = task, data, features
        self.seed, self.folder, self.identity = seed, folder, identity
        self.device = torch.device(device)
        self.report = report or _silent
        self.config: TrainConfig = task.config.train
        train = features["train"]
        self.probe = build_probe(
            task,
            data,
            num_layers=train.num_layers,
            size=train.hidden_size,
            frame_rate=train.frame_rate,
            seed=seed,
        ).to(self.device)
        self.optimizer = _optimizer(self.probe, self.config, weight_rate_scale=task.config.features.weight_rate_scale)
        self.progress = Progress()
        self.crops = training_crops(data.splits["train"], task.config)

    def run(self) -> Fitted:
        """Trains, keeps the best by dev, and measures it on dev and once on test.

        Raises:
            DivergedError: a loss or a metric that is not finite.
        """
        self.fit()
        dev, test = self.evaluate("dev"), self.evaluate("test")
        if self.progress.best is None:
            save_probe(self.probe, self.folder)
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        return Fitted(self.progress, dev, test)

    def fit(self) -> None:
        """Trains, and leaves the probe with the weights that were best on dev; the checkpoint stays."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        if self.optimizer is None:
            self.progress.step = self.config.steps
        else:
            self._train()
        if self.progress.best is not None:
            load_probe(self.probe, self.folder)
        else:
            save_probe(self.probe, self.folder)

    def evaluate(self, split: str) -> Evaluation:
        """Measures the current weights on one split."""
        begin = time.perf_counter()
        features = self.features[split]
        if isinstance(self.task, MeasuresFeatures):
            found = self.task.measure(
                self.probe, features, self.data, split, self.folder, lambda text: self.report(0, text)
            )
        else:
            predictions = predict(self.probe, self.task, self.data, split, features, device=self.device)
            found = self.task.evaluate(self.probe.head, predictions, self.data, split, self.folder)
        self.progress.seconds["evaluate"] += time.perf_counter() - begin
        return found

    def _train(self) -> None:
        utterances = list(self.data.splits["train"])
        stream = self._batches(utterances)
        if self.progress.stream is not None:
            stream.load_state(self.progress.stream)
        recent: list[float] = []
        every = max(1, self.config.steps // POINTS)
        self.report(self.progress.step, "")
        for batch in stream:
            if self.progress.step >= self.config.steps:
                break
            recent.append(self._step([utterances[i] for i in batch.indices]))
            done = self.progress.step
            self.report(1, f"loss {recent[-1]:.3f}")
            if done % every == 0:
                self.progress.point("train loss", sum(recent) / len(recent))
                recent.clear()
            if done % self.config.evaluate_every == 0 or done == self.config.steps:
                self.progress.stream = stream.state_after(batch)
                self._checkpoint()

    def _batches(self, utterances: Sequence[Utterance]) -> BatchStream:
        config, longest = self.config, self.config.max_duration or math.inf
        seconds, budget = [min(u.duration or longest, longest) for u in utterances], config.batch_seconds
        if self.task.config.features.pooling == "mean" and config.max_batch_size is not None:
            # What is pooled needs no padding: batches are as random as they can be, and of one size.
            seconds, budget = [1.0] * len(utterances), float(config.max_batch_size)
        groups, balance = self.task.groups(self.data), None
        if groups is not None:
            names, codes = np.unique(np.asarray(groups), return_inverse=True)
            alike = np.ones(len(groups))
            balance = Balance(codes.astype(np.int32), names.tolist(), alike, alpha=0.0, seed=self.seed)
        return BatchStream(
            seconds, batch_seconds=budget, max_size=config.max_batch_size, seed=self.seed, balance=balance
        )

    def _step(self, utterances: Sequence[Utterance]) -> float:
        begin = time.perf_counter()
        self.progress.step += 1
        step = self.progress.step
        optimizer = self.optimizer
        if optimizer is None:
            raise SpeechsslError(f"The head of '{self.task.name}' has nothing to train: set `train.steps` to 0.")
        for group in optimizer.param_groups:
            group["lr"] = group["rate_scale"] * self.config.learning_rate * schedule(self.config, step)
        generator = make_generator(self.seed, "step", step)
        heard = choose_crops(utterances, self.crops, generator)
        states, lengths = collate(
            self.features["train"], heard, max_duration=self.config.max_duration, generator=generator
        )
        self.probe.train()
        optimizer.zero_grad(set_to_none=True)
        bf16 = self.config.precision == "bf16"
        with (
            seeded(derive_seed(self.seed, "dropout", step)),
            torch.autocast(self.device.type, torch.bfloat16, enabled=bf16),
        ):
            summed = self.probe.featurizer(states.to(self.device), lengths.to(self.device))
            out = self.task.loss(self.probe.head, summed, lengths.to(self.device), utterances, self.data, generator)
            size = out.sample_size.to(out.loss_sum.device).clamp(min=1)
            loss = out.loss_sum / size
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        norm = nn.utils.clip_grad_norm_(self.probe.parameters(), self.config.clip_norm)
        value = float(loss.detach())
        if not math.isfinite(value) or not math.isfinite(float(norm)):
            raise DivergedError(
                f"The loss of '{self.task.name}' is {value} at step {step} (gradient norm {float(norm)}): "
                "lower `train.learning_rate`."
            )
        optimizer.step()
        metrics = {k: float(v) / float(size) for k, v in out.metrics.items()}
        self._log(step=step, loss=value, gradient_norm=float(norm), **metrics)
        self.progress.seconds["train"] += time.perf_counter() - begin
        return value

    def _checkpoint(self) -> None:
        found = self.evaluate("dev").metrics
        name = self.task.metric
        value = found[name].value
        if not math.isfinite(value):
            raise DivergedError(f"The {name} of '{self.task.name}' on dev is {value} at step {self.progress.step}.")
        self.progress.point(f"dev {name}", value)
        self._log(step=self.progress.step, **{f"dev {k}": v.value for k, v in found.items()})
        best = self.progress.best
        if best is None or (value > best if self.task.higher_is_better else value < best):
            self.progress.best, self.progress.best_step = value, self.progress.step
            save_probe(self.probe, self.folder)
        state = {
            "identity": self.identity,
            "probe": self.probe.state_dict(),
            "optimizer": self.optimizer.state_dict() if self.optimizer is not None else None,
            "progress": vars(self.progress),
        }
        with replacing(self.folder / CHECKPOINT) as partial:
            torch.save(state, partial)

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        log = self.folder / LOG
        state = _read_checkpoint(path)
        if state is None or state["identity"] != self.identity or not (self.folder / HEAD).is_file():
            log.unlink(missing_ok=True)
            return
        self.probe.load_state_dict(state["probe"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        if log.is_file():
            rows = [r for r in log.read_text().splitlines() if json.loads(r)["step"] <= self.progress.step]
            log.write_text("".join(r + "\n" for r in rows))
        logger.info("%s goes on from step %d", self.folder, self.progress.step)

    def _log(self, **row: float) -> None:
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def schedule(config: TrainConfig, step: int) -> float:
    """The factor of the learning rate at `step` (from 1): linear warm-up, then constant, linear or cosine to 0."""
    if step <= config.warmup_steps:
        return step / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps + 1)
    if config.schedule == "linear":
        return 1.0 - share
    if config.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * share))
    return 1.0


def collate(
    features: Features, utterances: Sequence[Utterance], *, max_duration: float | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A training batch; utterances longer than `max_duration` seconds are cropped at random.

    Returns:
        (K, B, T, D) or, where pooled, (K, B, D); and valid frames (B,) int64.
    """
    ids = [u.id for u in utterances]
    arrays = [features.get(i) for i in ids]
    limit = None if max_duration is None else max(1, round(max_duration * features.frame_rate))
    if limit is None or arrays[0].dim() == 2 or max(a.size(1) for a in arrays) <= limit:
        return features.batch(ids)
    lengths = [min(a.size(1), limit) for a in arrays]
    layers, _, size = arrays[0].shape
    out = arrays[0].new_zeros(layers, len(arrays), max(lengths), size)  # (K, B, T, D)
    for row, (array, length) in enumerate(zip(arrays, lengths, strict=True)):
        start = int(torch.randint(array.size(1) - length + 1, (), generator=generator))
        out[:, row, :length] = array[:, start : start + length]
    return out, torch.tensor(lengths)


@torch.no_grad()
def predict(
    probe: Probe, task: Task, data: TaskData, split: str, features: Features, *, device: torch.device
) -> dict[str, Any]:
    """Predictions for every utterance of a split: id -> what the task returns."""
    probe.eval()
    utterances = list(data.splits[split])
    config: TrainConfig = task.config.train
    found: dict[str, Any] = {}
    durations = [u.duration or 1.0 for u in utterances]
    for indices in bucket_batches(durations, batch_seconds=config.batch_seconds, max_size=config.max_batch_size):
        part = [utterances[i] for i in indices]
        states, lengths = features.batch([u.id for u in part])
        summed = probe.featurizer(states.to(device), lengths.to(device))
        predictions = task.predict(probe.head, summed, lengths.to(device), part, data)
        found.update({u.id: p for u, p in zip(part, predictions, strict=True)})
    return found


def save_probe(probe: Probe, folder: Path) -> None:
    """Writes head.safetensors (with the layer weights), whole or not at all."""
    save_tensors(probe.state_dict(), folder / HEAD)


def load_probe(probe: Probe, folder: Path) -> None:
    """Reads head.safetensors into a probe of the same shape."""
    path = folder / HEAD
    if not path.is_file():
        raise SpeechsslError(f"There is no trained head at {path}: run the task first.")
    try:
        probe.load_state_dict(load_file(path))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise SpeechsslError(f"The head {path} does not fit its config ({error}): run the task again.") from error


def _silent(steps: int, note: str) -> None:
    del steps, note


def _optimizer(probe: Probe, config: TrainConfig, *, weight_rate_scale: float) -> torch.optim.Optimizer | None:
    """None where there is nothing to train; 'rate_scale' of a group multiplies the learning rate of every step."""
    groups = [
        {"params": [p for p in module.parameters() if p.requires_grad], "rate_scale": scale}
        for module, scale in ((probe.featurizer, weight_rate_scale), (probe.head, 1.0))
    ]
    groups = [group for group in groups if group["params"]]
    if config.steps == 0 or not groups:
        return None
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.learning_rate, weight_decay=config.weight_decay)


def _read_checkpoint(path: Path) -> dict[str, Any] | None:
    """None where there is none, or one that was cut off."""
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except Exception as error:  # torch raises many kinds; whatever it is, the run begins anew
        logger.warning("The checkpoint %s can't be read (%s): the run begins anew.", path, error)
        return None
