"""The pre-training loop, on Lightning Fabric.

Losses are summed and divided by the number of scored frames over all processes and accumulated micro-batches, so that
neither changes the result. All randomness derives from (seed, micro-batch number), so that a run goes on bit for bit.
"""

import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from speechssl.config import first_difference
from speechssl.data.batching import BatchStream, derive_seed
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.objective import Objective, PretrainInputs
from speechssl.progress import progress
from speechssl.train.checkpoint import Checkpoint, last_checkpoint, pack, save_checkpoint, unpack
from speechssl.train.config import RUN_KEYS, PretrainConfig
from speechssl.train.data import PretrainDataset, TrainBatch, load_batches
from speechssl.train.metrics import MetricLog, Window, first_bad, read_log
from speechssl.train.optim import learning_rate, make_optimizer, scale_gradients

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainOutcome:
    """How a run ended."""

    step: int
    finished: bool
    """False: a signal stopped it; the same call goes on from there."""
    values: Mapping[str, float]
    """The last log line."""


class TrainingError(SpeechsslError):
    """The optimisation broke down; the message says at which step and why."""


class _Fabricated(nn.Module):
    """Gives Fabric plain tensors to convert: it does not take frozen dataclasses."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(  # noqa: PLR0917  # the fields of PretrainInputs
        self,
        waveform: Tensor,
        lengths: Tensor,
        codes: tuple[Tensor, ...],
        tokens: Tensor | None,
        token_lengths: Tensor | None,
        noise: Tensor | None,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        inputs = PretrainInputs(waveform, lengths, codes, tokens, token_lengths, noise)
        output = self.objective(inputs, generator)
        return {"loss_sum": output.loss_sum, "sample_size": output.sample_size, **output.metrics}


class Pretraining:
    """One run: an objective trained on a dataset."""

    def __init__(
        self,
        objective: Objective,
        dataset: PretrainDataset,
        config: PretrainConfig,
        folder: Path,
        *,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            folder: receives `checkpoints`, `log.jsonl` and `tensorboard`.
            identity: what else must be equal for a run to go on, such as the model's config and the corpus.
        """
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.fabric = _make_fabric(config, objective.skips_blocks)
        world = self.fabric.world_size
        if config.batches_per_step % world:
            raise ConfigError(
                f"`batches_per_step` must be a multiple of {world} processes, but is {config.batches_per_step}."
            )
        self.objective = objective
        self.config = config
        self.folder = folder
        self.accumulate = config.batches_per_step // world
        self.dataset = dataset
        settings = {k: v for k, v in asdict(config).items() if k not in RUN_KEYS}
        # As JSON gives it back: lists for tuples.
        self.identity: dict[str, Any] = json.loads(json.dumps({"train": settings, **(identity or {})}))
        module = _Fabricated(objective)
        if config.compile:
            module.compile(dynamic=True)  # type: ignore[no-untyped-call]  # untyped in torch
        self.model, self.optimizer = self.fabric.setup(module, make_optimizer(objective.trained_parameters(), config))
        self.stream = BatchStream(
            dataset.durations,
            batch_seconds=config.batch_seconds,
            seed=config.seed,
            max_size=config.max_batch,
            rank=self.fabric.global_rank,
            world_size=world,
        )
        self.step = 0
        self.window = Window()
        self._position: dict[str, int] = {}
        self._losses: list[Tensor] = []
        self._healthy = 0
        self._stop = False

    def run(self) -> PretrainOutcome:
        """Trains to the end, from the last checkpoint if there is one.

        Raises:
            TrainingError: a loss that is not finite, or a collapse.
            ConfigError: the checkpoint is of a run with other settings.
        """
        self._resume()
        self.model.train()
        if self.step == 0:
            self._begin()
        batches = load_batches(self.dataset, self.stream, num_workers=self.config.num_workers)
        total = self.config.steps
        values = _last_values(self.folder) if self.step else {}
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(batches))  # type: ignore[type-var]  # a generator has close()
            stack.enter_context(_signals(self._request_stop))
            stack.enter_context(torch.random.fork_rng(enabled=True))
            log = stack.enter_context(MetricLog(self.folder, step=self.step)) if self.fabric.is_global_zero else None
            advance = stack.enter_context(_bar(total - self.step, shown=log is not None))
            begin = time.perf_counter()
            while self.step < total:
                self._update(batches)
                if self.step % self.config.log_every == 0 or self.step == total:
                    values = self._values(time.perf_counter() - begin)
                    begin = time.perf_counter()
                    if log is not None:
                        log.write(self.step, values)
                    self._guard(values)
                stop = self._stops()
                if stop or self.step % self.config.save_every == 0 or self.step == total:
                    self._save()
                advance(1.0, _note(values))
                if stop:
                    break
        return PretrainOutcome(self.step, self.step >= total, values)

    def _begin(self) -> None:
        """Shows the objective the run's first micro-batches, the same ones in every process."""
        wanted = self.objective.fit_batches
        if wanted == 0:
            return
        first = islice(self.stream.of_all_ranks(), wanted)
        self.objective.begin_run(self.dataset[batch].inputs.to(self.fabric.device) for batch in first)

    def _update(self, batches: Iterator[TrainBatch]) -> None:
        """One step of the optimiser."""
        rate = learning_rate(self.step + 1, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.objective.begin_step(self.step)
        sums: dict[str, Tensor] = {}
        for number in range(self.accumulate):
            batch = next(batches)
            last = number + 1 == self.accumulate
            with self.fabric.no_backward_sync(self.model, enabled=not last):
                output = self._forward(batch)
                self.fabric.backward(output["loss_sum"])
            for name, value in output.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
            sums["audio_seconds"] = sums.get("audio_seconds", torch.zeros(())) + batch.audio_seconds
            self._position = self.stream.state_after(batch.origin)
        sums["audio_seconds"] = sums["audio_seconds"].to(self.fabric.device)
        sums = self._reduce(sums)
        # DDP has averaged the gradients over the processes: the sum is `world_size` times that.
        scale = self.fabric.world_size / sums["sample_size"].clamp(min=1)
        norm = scale_gradients(self.model, scale, self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        with torch.no_grad():
            self.objective.end_step(self.step, self._reduce)
        sums["loss"] = sums.pop("loss_sum")
        self.window.add({**sums, "grad_norm": norm * sums["sample_size"]})
        self._losses.append(sums["loss"] + norm)

    def _forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        device = self.fabric.device
        seed, number = self.config.seed, batch.origin.number
        generator = torch.Generator(device).manual_seed(derive_seed(seed, "mask", number))
        # Dropout takes no generator of its own; `run` restores the global one at the end.
        torch.manual_seed(derive_seed(seed, "dropout", number))
        given = batch.inputs.to(device)
        return self.model(  # type: ignore[no-any-return]  # Fabric's wrapper returns Any
            given.waveform, given.lengths, given.codes, given.tokens, given.token_lengths, given.noise, generator
        )

    def _reduce(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the processes, in one collective."""
        if self.fabric.world_size == 1:
            return dict(sums)
        names = sorted(sums)
        flat = torch.cat([sums[n].float().reshape(-1) for n in names])
        flat = self.fabric.all_reduce(flat, reduce_op="sum")
        parts = torch.split(flat, [sums[n].numel() for n in names])
        return {n: p.view(sums[n].shape) for n, p in zip(names, parts, strict=True)}

    def _values(self, seconds: float) -> dict[str, float]:
        """Fetches the window's metrics."""
        self._check_finite()
        values = self.window.fetch()
        values["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        values["epoch"] = float(self._position["epoch"])
        values["seconds"] = seconds
        values["audio_per_second"] = values["audio_seconds"] / seconds
        return values

    def _check_finite(self) -> None:
        bad = first_bad(self._losses)
        if bad is not None:
            step = self.step - len(self._losses) + 1 + bad
            raise TrainingError(
                f"The loss or its gradient is not finite at step {step}: lower `learning_rate` or `clip_norm`, or use "
                "precision=float32; the last checkpoint is from before."
            )
        self._losses = []

    def _guard(self, values: Mapping[str, float]) -> None:
        """Stops a run that has collapsed: one of the objective's values stays below its limit."""
        low = {k: values[k] for k, least in self.objective.limits.items() if k in values and values[k] < least}
        if not low:
            self._healthy = self.step
        elif self.step - self._healthy >= self.config.collapse_steps:
            name, value = next(iter(low.items()))
            raise TrainingError(
                f"The model has collapsed at step {self.step} ({name.replace('_', ' ')} {value:.2f}, low since step "
                f"{self._healthy}): lower `learning_rate`, lengthen `warmup`, or look at the data and its labels."
            )

    def _stops(self) -> bool:
        """Whether to save and stop; several processes agree on it when they log."""
        if self.fabric.world_size == 1:
            return self._stop
        if self.step % self.config.log_every:
            return False
        flag = torch.tensor(float(self._stop), device=self.fabric.device)
        return float(self.fabric.all_reduce(flag, reduce_op="sum")) > 0

    def _request_stop(self) -> None:
        self._stop = True

    def _save(self) -> None:
        self._check_finite()
        if not self.fabric.is_global_zero:
            return
        tensors = pack(self.objective, self.optimizer)
        tensors |= {f"window.{name}": value.detach().cpu() for name, value in self.window.sums.items()}
        state = {"stream": self._position, "healthy": self._healthy, "identity": self.identity}
        save_checkpoint(self.folder / "checkpoints", Checkpoint(self.step, tensors, state), keep=self.config.keep)

    def _resume(self) -> None:
        checkpoint = last_checkpoint(self.folder / "checkpoints")
        if checkpoint is None:
            return
        _check_identity(checkpoint.state["identity"], self.identity, self.folder)
        unpack(checkpoint.tensors, self.objective, self.optimizer)
        device = self.fabric.device
        self.window.sums = {
            k.removeprefix("window."): v.to(device) for k, v in checkpoint.tensors.items() if k.startswith("window.")
        }
        self.step = checkpoint.step
        self._position = dict(checkpoint.state["stream"])
        self._healthy = int(checkpoint.state["healthy"])
        self.stream.load_state(self._position)
        logger.info("Going on from step %d.", self.step)


def _make_fabric(config: PretrainConfig, find_unused_parameters: bool) -> Any:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    accelerator = config.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError("`train.accelerator` is cuda, but there is no GPU that torch can use: choose cpu or auto.")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    strategy: Any = "auto"
    if processes > 1:
        backend = "nccl" if accelerator == "cuda" else "gloo"
        strategy = DDPStrategy(process_group_backend=backend, find_unused_parameters=find_unused_parameters)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=processes // local,
        strategy=strategy,
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
    )
    fabric.launch()
    return fabric


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


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT let the current step end; a second one stops at once."""

    def handle(number: int, _frame: FrameType | None) -> None:
        stop()
        signal.signal(number, before[number])

    try:
        before: dict[int, Any] = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # only the main thread may set handlers
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_identity(saved: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    different = first_difference(saved, wanted)
    if different is not None:
        key, old, new = different
        raise ConfigError(
            f"The run in {folder} was begun with {key}={old}, not {new}: "
            "use the same settings to go on, or another folder."
        )
