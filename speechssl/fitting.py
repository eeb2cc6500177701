"""Fits one head, on cached features or with its upstream: the inner part of `speechssl run`.

Each step is a function of (seed, step) alone, so that a run that was interrupted goes on from its last evaluation on
dev and ends with the same weights. The best weights are those of the best evaluation on dev; test is looked at once.
K layers, B batch, T frames, D width.
"""

import json
import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from speechssl.abilities import Disturbs, FitsInPasses, Joined, MeasuresFeatures, Passes, Report, StartsFromFeatures
from speechssl.adapt.live import AHEAD, LiveFeatures
from speechssl.adapt.reading import SEED
from speechssl.crops import choose_crops, training_crops
from speechssl.data.balance import Balance
from speechssl.data.batching import Batch, BatchStream, bucket_batches, derive_seed, make_generator
from speechssl.devices import CPU, Devices
from speechssl.errors import ConfigError, DivergedError, SpeechsslError
from speechssl.feature_batches import Features, States, collate, place
from speechssl.files import replacing
from speechssl.gradients import Scored, differentiate, differentiate_parts
from speechssl.predicting import predict
from speechssl.probe import HEAD, build_probe, load_probe, make_optimizer, save_probe, seeded
from speechssl.result import Evaluation
from speechssl.task import Task, TaskData, TrainConfig
from speechssl.types import LossOutput, Utterance

logger = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
POINTS = 200  # of the training loss curve, at most about


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
        devices: Devices = (CPU,),
        report: Report | None = None,
    ) -> None:
        """
        Args:
            features: split -> store that holds its utterances, or `LiveFeatures`, which are trained with the head.
            folder: for the checkpoint, the log and the best head.
            identity: what decides the numbers; a checkpoint of another identity is not gone on from.
            devices: the first one trains, all of them evaluate.
        """
        self.task, self.data, self.features = task, data, features
        self.seed, self.folder, self.identity = seed, folder, identity
        self.devices, self.device = devices, devices[0]
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
        self.live = train if isinstance(train, LiveFeatures) else None
        self.probe.adapted = None if self.live is None else self.live.adapted
        self.disturbed = self._disturb()
        self.optimizer = make_optimizer(self.probe, task.config)
        self.progress = Progress()
        self.crops = training_crops(data.splits["train"], task.config)

    def _disturb(self) -> bool:
        """Sees that what training hears is disturbed, if the task wants that."""
        disturb = self.task.disturbance() if isinstance(self.task, Disturbs) else None
        if disturb is None:
            return False
        if self.live is None:
            raise ConfigError("A frozen upstream hears each utterance once: it can't be disturbed anew at each visit.")
        self.live.disturb_with(disturb)
        return True

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
        if self.progress.step == 0:
            self._start()
        if self.optimizer is None:
            self._fit_in_passes()
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
            found = self.task.measure(self.probe, features, self.data, split, self.folder, self.report)
        else:
            predictions = predict(self.probe, self.task, self.data, split, features, devices=self.devices)
            found = self.task.evaluate(self.probe.head, predictions, self.data, split, self.folder)
        self.progress.seconds["evaluate"] += time.perf_counter() - begin
        return found

    def _start(self) -> None:
        """What a new head must hold before it is trained; a checkpoint has it already."""
        if not isinstance(self.task, StartsFromFeatures):
            return
        begin = time.perf_counter()
        generator = make_generator(self.seed, "start")
        self.task.start_head(self.probe.head, self._passes(), self.data, generator=generator)
        self.progress.seconds["train"] += time.perf_counter() - begin

    def _fit_in_passes(self) -> None:
        if self.config.steps or not isinstance(self.task, FitsInPasses):
            return
        begin = time.perf_counter()
        generator = make_generator(self.seed, "fit")

        def report(done: float, note: str) -> None:
            self.report(done, note)
            self._save()

        self.task.fit_head(self.probe.head, self._passes(), self.data, generator=generator, report=report)
        self.progress.seconds["train"] += time.perf_counter() - begin

    def _passes(self) -> Passes:
        self.probe.eval()
        train = self.data.splits["train"]
        heard = [own for utterance in train for own in self.crops.get(utterance.id, [utterance])]
        return partial(self._pass, heard)

    @torch.no_grad()
    def _pass(self, utterances: Sequence[Utterance]) -> Iterator[Joined]:
        """Goes once through the features of utterances, in batches of like duration."""
        batches = bucket_batches(
            [u.duration or 1.0 for u in utterances],
            batch_seconds=self.config.batch_seconds,
            max_size=self.config.max_batch_size,
        )
        for indices in batches:
            part = [utterances[i] for i in indices]
            states, lengths = self.features["train"].batch([u.id for u in part])
            lengths = lengths.to(self.device)
            yield self.probe.featurizer(place(states, self.device), lengths), lengths, part

    def _train(self) -> None:
        utterances = list(self.data.splits["train"])
        stream = self._batches(utterances)
        if self.progress.stream is not None:
            stream.load_state(self.progress.stream)
        recent: list[float] = []
        every = max(1, self.config.steps // POINTS)
        self.report(self.progress.step, "")
        for batch in self._looking_ahead(stream, utterances):
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
        if self.task.config.features.pooling == "mean" and config.max_batch_size is not None and self.live is None:
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

    def _looking_ahead(self, stream: Iterable[Batch], utterances: Sequence[Utterance]) -> Iterator[Batch]:
        """The batches, some of whose audio is read before its turn."""
        if self.live is None:
            yield from stream
            return
        coming, step = deque[Batch](), self.progress.step
        for batch in stream:
            step += 1
            if step <= self.config.steps:
                self.live.prefetch(self._hear([utterances[i] for i in batch.indices], step)[0])
            coming.append(batch)
            if len(coming) > AHEAD:
                yield coming.popleft()

    def _hear(self, utterances: Sequence[Utterance], step: int) -> tuple[list[Utterance], torch.Generator]:
        """What a step hears of a batch, and the generator that goes on to draw for it."""
        generator = make_generator(self.seed, "step", step)
        heard = choose_crops(utterances, self.crops, generator)
        if self.disturbed:
            seeds = [derive_seed(self.seed, "disturb", step, u.id) for u in heard]
            heard = [replace(u, labels={**u.labels, SEED: s}) for u, s in zip(heard, seeds, strict=True)]
        return heard if self.live is None else self.live.cut(heard, generator), generator

    def _step(self, utterances: Sequence[Utterance]) -> float:
        begin = time.perf_counter()
        self.progress.step += 1
        step = self.progress.step
        optimizer = self.optimizer
        if optimizer is None:
            raise SpeechsslError(f"The head of '{self.task.name}' has nothing to train: set `train.steps` to 0.")
        for group in optimizer.param_groups:
            group["lr"] = group["rate_scale"] * self.config.learning_rate * schedule(self.config, step)
        heard, generator = self._hear(utterances, step)
        self.probe.train()
        optimizer.zero_grad(set_to_none=True)
        bf16 = self.config.precision == "bf16"
        with (
            seeded(derive_seed(self.seed, "dropout", step)),
            torch.autocast(self.device.type, torch.bfloat16, enabled=bf16),
        ):
            if self.live is None:
                states, lengths = collate(
                    self.features["train"], heard, max_duration=self.config.max_duration, generator=generator
                )
                scored = differentiate(self._loss(states, lengths, utterances, generator))
            else:
                scored = self._learn(self.live, heard, utterances, generator)
        norm = nn.utils.clip_grad_norm_(self.probe.learned(), self.config.clip_norm)
        value = scored.loss
        if not math.isfinite(value) or not math.isfinite(float(norm)):
            raise DivergedError(
                f"The loss of '{self.task.name}' is {value} at step {step} (gradient norm {float(norm)}): "
                "lower `train.learning_rate`."
            )
        optimizer.step()
        self._log(step=step, loss=value, gradient_norm=float(norm), **scored.metrics)
        self.progress.seconds["train"] += time.perf_counter() - begin
        return value

    def _loss(
        self, states: States, lengths: Tensor, utterances: Sequence[Utterance], generator: torch.Generator
    ) -> LossOutput:
        joined = self.probe.featurizer(place(states, self.device), lengths.to(self.device))
        return self.task.loss(self.probe.head, joined, lengths.to(self.device), utterances, self.data, generator)

    def _learn(
        self,
        live: LiveFeatures,
        heard: Sequence[Utterance],
        utterances: Sequence[Utterance],
        generator: torch.Generator,
    ) -> Scored:
        """One pass through the upstream, or several whose gradients add up."""
        live.prepare(self.progress.step)
        frozen = self.progress.step <= live.config.freeze_steps

        def losses() -> Iterator[LossOutput]:
            for places in parts:
                states, lengths = live.learn([heard[i] for i in places], generator, frozen=frozen)
                out = self._loss(states, lengths, [utterances[i] for i in places], generator)
                yield live.with_distance(out, self.progress.step, self.config.steps)

        parts = live.split(heard)
        if len(parts) == 1:
            return differentiate(next(losses()))
        return differentiate_parts(losses(), self.probe.learned())

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
        self._save()

    def _save(self) -> None:
        state = {
            "identity": self.identity,
            "probe": self.probe.state(),
            "optimizer": self.optimizer.state_dict() if self.optimizer is not None else None,
            "progress": vars(self.progress),
        }
        with replacing(self.folder / CHECKPOINT) as partial:
            torch.save(state, partial)

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        log = self.folder / LOG
        state = _read_checkpoint(path)
        best_is_gone = (
            state is not None and state["progress"]["best"] is not None and not (self.folder / HEAD).is_file()
        )
        if state is None or state["identity"] != self.identity or best_is_gone:
            log.unlink(missing_ok=True)
            return
        self.probe.load_state(state["probe"], origin=str(path))
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


def _silent(steps: float, note: str) -> None:
    del steps, note


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
