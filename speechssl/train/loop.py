"""The pre-training loop, on Lightning Fabric.

Losses are summed and divided by the number of scored frames over all processes and accumulated micro-batches, so that
neither changes the result. All randomness derives from (seed, micro-batch number), so that a run goes on bit for bit.
No step waits for the device: values are fetched when they are logged.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechssl.data.seeds import derive_seed
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.files import disk_full
from speechssl.objective import Objective
from speechssl.progress import progress
from speechssl.train.checkpoint import Checkpoint, check_identity, last_checkpoint, pack, save_checkpoint, unpack
from speechssl.train.config import RUN_KEYS, PretrainConfig
from speechssl.train.data import PretrainDataset, TrainBatch
from speechssl.train.fabric import Given, is_sharded, make_fabric, set_up
from speechssl.train.loading import load_batches
from speechssl.train.metrics import MetricLog, Window, read_log
from speechssl.train.optim import fill_gradients, learning_rate, make_optimizer, scale_gradients
from speechssl.train.signals import Agreement, stop_signals
from speechssl.train.watch import CollapseGuard, DeviceClock, FiniteGuard, TrainingError, check_loss_scale

__all__ = ["PretrainOutcome", "Pretraining", "TrainingError"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainOutcome:
    """How a run ended."""

    step: int
    finished: bool
    """False: a signal stopped it; the same call goes on from there."""
    values: Mapping[str, float]
    """The last log line."""


class Pretraining:
    """One run: an objective trained on a dataset."""

    model: nn.Module
    optimizer: Any

    def __init__(
        self,
        objective: Objective,
        dataset: PretrainDataset,
        config: PretrainConfig,
        folder: Path,
        *,
        identity: Mapping[str, Any] | None = None,
        fabric: Any = None,
    ) -> None:
        """
        Args:
            folder: receives `checkpoints`, `log.jsonl` and `tensorboard`.
            identity: what else must be equal for a run to go on, such as the model's config and the corpus.
            fabric: a launched one; None = what the config says.
        """
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.fabric = fabric or make_fabric(config, objective)
        self.device: torch.device = self.fabric.device
        self.world: int = self.fabric.world_size
        if config.batches_per_step % self.world:
            raise ConfigError(
                f"`batches_per_step` must be a multiple of {self.world} processes, but is {config.batches_per_step}."
            )
        self.objective = objective
        self.config = config
        self.folder = folder
        self.dataset = dataset
        settings = {k: v for k, v in asdict(config).items() if k not in RUN_KEYS}
        # As JSON gives it back: lists for tuples.
        self.identity: dict[str, Any] = json.loads(json.dumps({"train": settings, **(identity or {})}))
        self.stream = dataset.stream(config, rank=self.fabric.global_rank, world_size=self.world)
        self.step = 0
        self.window = Window()
        self.finite = FiniteGuard()
        self.collapse = CollapseGuard(objective.limits, patience=config.patience)
        self.clock = DeviceClock(self.device)
        self.scaler: Any = getattr(self.fabric._precision, "scaler", None)
        self._position: dict[str, int] = {}
        self._saved = 0
        """Step of the last checkpoint that was written or tried."""
        self._agreement = Agreement(self.device)
        self._stop = False

    def run(self) -> PretrainOutcome:
        """Trains to the end, from the last checkpoint if there is one.

        Raises:
            TrainingError: a loss that is not finite, or a collapse.
            ConfigError: the checkpoint is of a run with other settings.
            OSError: the last checkpoint could not be written; the ones before are there.
        """
        self._set_up()
        batches = load_batches(
            self.dataset, self.stream, num_workers=self.config.num_workers, pin=self.device.type == "cuda"
        )
        total = self.config.steps
        values = _last_values(self.folder) if self.step else {}
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(batches))  # type: ignore[type-var]  # a generator has close()
            stack.enter_context(stop_signals(self._request_stop))
            stack.enter_context(torch.random.fork_rng([self.device] if self.device.type == "cuda" else []))
            log = stack.enter_context(MetricLog(self.folder, step=self.step)) if self.fabric.is_global_zero else None
            advance = stack.enter_context(_bar(total - self.step, shown=log is not None))
            self.clock.fetch()
            stop = False
            while self.step < total and not stop:
                whole = self._update(batches)
                stop = self._stops() if whole else True
                if whole and (self.step % self.config.log_every == 0 or self.step == total):
                    values = self._values()
                    if log is not None:
                        log.write(self.step, values)
                    self.collapse.check(self.step, values)
                if stop or self.step % self.config.save_every == 0 or self.step == total:
                    self._save(must=stop or self.step == total)
                advance(float(whole), _note(values))
        return PretrainOutcome(self.step, self.step >= total, values)

    def _set_up(self) -> None:
        """Puts the objective on the device, as new or as the last checkpoint has it."""
        checkpoint = last_checkpoint(self.folder / "checkpoints")
        self.objective.to(self.device)
        if checkpoint is None:
            self._begin()
        else:
            check_identity(checkpoint.state["identity"], self.identity, self.folder)
        self.model = set_up(self.fabric, self.objective, self.config)
        optimizer = make_optimizer(self.objective.trained_parameters(), self.config)
        if checkpoint is not None:
            self._resume(checkpoint, optimizer)
        self.optimizer = self.fabric.setup_optimizers(optimizer)
        self.model.train()

    def _begin(self) -> None:
        """Shows the objective the run's first micro-batches, the same ones in every process."""
        wanted = self.objective.fit_batches
        if wanted == 0:
            return
        first = islice(self.stream.of_all_ranks(), wanted)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(derive_seed(self.config.seed, "begin"))
            self.objective.begin_run(self.dataset[batch].inputs.to(self.device) for batch in first)

    def _update(self, batches: Iterator[TrainBatch]) -> bool:
        """One step of the optimiser; where a single process is asked to stop amid one, nothing of it, and False."""
        rate = learning_rate(self.step + 1, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.objective.begin_step(self.step)
        sums: dict[str, Tensor] = {}
        seconds = padded = 0.0
        accumulate = self.config.batches_per_step // self.world
        before = self._position, self._buffers() if accumulate > 1 else {}
        for number in range(accumulate):
            # Several processes would have to agree at each micro-batch: they end the step.
            if number > 0 and self._stop and self.world == 1:
                self._undo(*before)
                return False
            try:
                with self.clock.waiting():
                    batch = next(batches)
            except SpeechsslError:
                self._undo(*before)
                self._keep()
                raise
            # Sharded gradients are summed at each micro-batch, since whole ones may not fit.
            waits = number + 1 < accumulate and not is_sharded(self.config, self.fabric)
            with self.fabric.no_backward_sync(self.model, enabled=waits):
                output = self._forward(batch)
                self.fabric.backward(output["loss_sum"])
            for name, value in output.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
            seconds += batch.audio_seconds
            padded += batch.padded_seconds
            self._position = self.stream.state_after(batch.origin)
        told = {"audio_seconds": seconds, "padded_seconds": padded, "stop": float(self._stop)}
        sums |= {name: torch.full((), told[name], device=self.device) for name in told}
        sums = self._reduce(sums)
        self._agreement.say(sums.pop("stop"))
        norm = self._apply(sums["sample_size"])
        self.step += 1
        with torch.no_grad():
            self.objective.end_step(self.step, self._reduce)
        self._record(sums, norm)
        return True

    def _buffers(self) -> dict[str, Tensor]:
        """What a forward pass changes besides gradients, such as running means."""
        return {name: value.clone() for name, value in self.objective.named_buffers()}

    def _undo(self, position: dict[str, int], buffers: Mapping[str, Tensor]) -> None:
        """Forgets the micro-batches of a step that is not made."""
        self._position = position
        self.optimizer.zero_grad(set_to_none=True)
        now = dict(self.objective.named_buffers())
        for name, value in buffers.items():
            now[name].copy_(value)

    def _keep(self) -> None:
        """Before the run ends by an error of its data: the last whole step, where no other process is needed for it."""
        if self.fabric.is_global_zero and not is_sharded(self.config, self.fabric):
            self._save(must=False)

    def _forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        seed, number = self.config.seed, batch.origin.number
        generator = torch.Generator(self.device).manual_seed(derive_seed(seed, "mask", number))
        # Dropout takes no generator of its own; `run` restores the global one at the end.
        torch.manual_seed(derive_seed(seed, "dropout", number))
        return self.model(Given(batch.inputs.to(self.device), generator))  # type: ignore[no-any-return]  # Fabric's wrapper

    def _apply(self, sample_size: Tensor) -> Tensor:
        """Divides the gradients by the global sample size, clips them and makes the update; returns their norm."""
        fill_gradients(self.model)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer.optimizer)
        # The strategies average the gradients over the processes: the sum is `world` times that.
        norm = scale_gradients(self.model, self.world / sample_size.clamp(min=1), self.config.clip_norm)
        self.optimizer.step()  # with a loss scale, does nothing where `unscale_` has found an overflow
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _record(self, sums: dict[str, Tensor], norm: Tensor) -> None:
        loss = sums.pop("loss_sum")
        if self.scaler is not None:
            overflow = ~torch.isfinite(norm)
            sums["overflows"] = overflow.float()
            norm = norm.masked_fill(overflow, 0.0)
        self.window.add({**sums, "loss": loss, "grad_norm": norm * sums["sample_size"]})
        self.finite.add(loss + norm)

    def _reduce(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the processes, in one collective."""
        if self.world == 1:
            return dict(sums)
        names = sorted(sums)
        flat = torch.cat([sums[n].float().reshape(-1) for n in names])
        flat = self.fabric.all_reduce(flat, reduce_op="sum")
        parts = torch.split(flat, [sums[n].numel() for n in names])
        return {n: p.view(sums[n].shape) for n, p in zip(names, parts, strict=True)}

    def _values(self) -> dict[str, float]:
        """Fetches the window's metrics."""
        self.finite.check(self.step)
        values = {**self.window.fetch(), **self.clock.fetch()}
        values["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        values["epoch"] = float(self._position["epoch"])
        values["audio_per_second"] = values["audio_seconds"] / values["seconds"]
        if self.scaler is not None:
            values["loss_scale"] = float(self.scaler.get_scale())
            check_loss_scale(self.step, values["loss_scale"])
        return values

    def _stops(self) -> bool:
        """Whether to save and stop: all processes at the same step."""
        return self._stop if self.world == 1 else self._agreement.stops()

    def _request_stop(self) -> None:
        self._stop = True

    def _save(self, *, must: bool) -> None:
        """Writes a checkpoint; where the disk is full, goes on without one unless it `must` be written."""
        self.finite.check(self.step)
        if self.step == self._saved:  # nothing is new
            return
        zero: bool = self.fabric.is_global_zero
        if zero or is_sharded(self.config, self.fabric):
            tensors = pack(self.objective, getattr(self.optimizer, "optimizer", self.optimizer), keep=zero)
        if zero:
            tensors |= {f"window.{name}": value.detach().cpu() for name, value in self.window.sums.items()}
            scaler = self.scaler.state_dict() if self.scaler is not None else None
            state = {
                "stream": self._position,
                "healthy": self.collapse.healthy,
                "scaler": scaler,
                "identity": self.identity,
            }
            try:
                save_checkpoint(
                    self.folder / "checkpoints", Checkpoint(self.step, tensors, state), keep=self.config.keep
                )
            except Exception as error:
                if must or disk_full(error) is None:
                    raise
                logger.error(
                    "The disk of %s is full: there is no checkpoint of step %d, and the run goes on without; free some "
                    "space before step %d.", self.folder, self.step, self.step + self.config.save_every,
                )  # fmt: skip
        self._saved = self.step
        if must:
            self.fabric.barrier()  # torchrun ends all processes when the first one has ended

    def _resume(self, checkpoint: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
        unpack(checkpoint.tensors, self.objective, optimizer)
        self.window.sums = {
            k.removeprefix("window."): v.to(self.device)
            for k, v in checkpoint.tensors.items()
            if k.startswith("window.")
        }
        self.step = self._saved = checkpoint.step
        self._position = dict(checkpoint.state["stream"])
        self.collapse.healthy = dict(checkpoint.state["healthy"])
        if self.scaler is not None and checkpoint.state["scaler"]:
            self.scaler.load_state_dict(checkpoint.state["scaler"])
        self.stream.load_state(self._position)
        logger.info("Going on from step %d.", self.step)


def _nothing(_amount: float = 1.0, _note: str = "") -> None:
    """The progress bar of a process that shows none."""


@contextmanager
def _bar(steps: int, *, shown: bool) -> Iterator[Callable[..., None]]:
    if not shown:
        yield _nothing
        return
    with progress("Pre-training", steps, unit="steps") as advance:
        yield advance


def _last_values(folder: Path) -> dict[str, float]:
    lines = read_log(folder) if (folder / "log.jsonl").exists() else []
    return {k: float(v) for k, v in lines[-1].items() if k != "step"} if lines else {}


def _note(values: Mapping[str, float]) -> str:
    if not values:
        return ""
    accuracy = f"accuracy {100 * values['accuracy']:.1f} %, " if "accuracy" in values else ""
    return f"loss {values['loss']:.3f}, {accuracy}{values['audio_per_second']:.0f} s of audio/s"
