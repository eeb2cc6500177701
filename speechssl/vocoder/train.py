"""The training of a vocoder, on Lightning Fabric: a generator, and discriminators where the config says so.

All randomness derives from (seed, visit, utterance), so that a run goes on bit for bit on a CPU. One process and one
device.

Shapes: B batch, S samples, T frames, D width.
"""

import contextlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechssl.config import to_dict
from speechssl.data.seeds import derive_seed
from speechssl.files import disk_full
from speechssl.progress import progress
from speechssl.train.checkpoint import Checkpoint, check_identity, last_checkpoint, pack, save_checkpoint, unpack
from speechssl.train.data import TrainBatch
from speechssl.train.loading import load_batches
from speechssl.train.metrics import MetricLog, Window
from speechssl.train.signals import stop_signals
from speechssl.train.watch import DeviceClock, FiniteGuard, TrainingError
from speechssl.vocoder.config import RUN_KEYS, VocoderConfig, VocoderTrainConfig
from speechssl.vocoder.data import VocoderData
from speechssl.vocoder.discriminators import Discriminators, add_weight_norm
from speechssl.vocoder.folder import Generator, build_generator, save_vocoder
from speechssl.vocoder.hifigan import HifiGan
from speechssl.vocoder.inputs import FeatureSource
from speechssl.vocoder.losses import adversarial_loss, discriminator_loss, feature_matching_loss, mel_loss, stft_loss
from speechssl.vocoder.mel import log_mel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VocoderOutcome:
    """How a run ended."""

    step: int
    finished: bool
    """False: a signal stopped it; the same call goes on from there."""
    values: Mapping[str, float]
    """The last log line of this call."""


class VocoderTraining:
    """One run."""

    def __init__(
        self,
        config: VocoderConfig,
        data: VocoderData,
        folder: Path,
        *,
        fabric: Any,
        source: FeatureSource | None = None,
    ) -> None:
        """
        Args:
            folder: receives all that is written.
            source: which features the data hold; None = log-mel.
        """
        self.config = config
        self.train: VocoderTrainConfig = config.train
        self.data = data
        self.folder = folder
        self.fabric = fabric
        self.device: torch.device = fabric.device
        self.identity = _identity(config, data, source)
        self.loss_mel = replace(config.model.mel, low=0.0, high=config.model.mel.sample_rate / 2)
        self.stream = data.stream()
        self.step = 0
        self.window = Window()
        self.finite = FiniteGuard()
        self.clock = DeviceClock(self.device)
        self._position: dict[str, int] = {}
        self._saved = 0
        self._stop = False
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.train.seed, "vocoder"))
            self.generator: Generator = build_generator(config.model, name="in training", source=source)
            if isinstance(self.generator, HifiGan):
                add_weight_norm(self.generator)
            self.judges = None
            if self.train.adversarial_from is not None:
                self.judges = Discriminators(divisor=self.train.discriminator_divisor)

    def run(self) -> VocoderOutcome:
        """Trains to the end, from the last checkpoint if there is one.

        Raises:
            TrainingError: a loss that is not finite, or nothing but silence.
            ConfigError: the checkpoint is of a run with other settings.
            OSError: the last checkpoint could not be written; the ones before are there.
        """
        self._set_up()
        total, values = self.train.steps, dict[str, float]()
        batches = load_batches(
            self.data.dataset, self.stream, num_workers=self.train.num_workers, pin=self.device.type == "cuda"
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(batches))
            stack.enter_context(stop_signals(self._request_stop))
            log = stack.enter_context(MetricLog(self.folder, step=self.step))
            advance = stack.enter_context(progress("Training a vocoder", max(total - self.step, 0), unit="steps"))
            self.clock.fetch()
            while self.step < total and not self._stop:
                self._update(batches)
                if self.step % self.train.log_every == 0 or self.step == total:
                    values = self._values()
                    log.write(self.step, values)
                if self.step % self.train.save_every == 0:
                    self._save(must=False)
                advance(1.0, _note(values))
            self._save(must=True)
        return VocoderOutcome(self.step, self.step >= total, values)

    def _set_up(self) -> None:
        """Puts the networks on the device, as new or as the last checkpoint has them."""
        checkpoint = last_checkpoint(self.folder / "checkpoints")
        if checkpoint is not None:
            check_identity(checkpoint.state["identity"], self.identity, self.folder)
        self.networks: dict[str, nn.Module] = {"generator": self.generator}
        if self.judges is not None:
            self.networks["discriminators"] = self.judges
        self.optimizers = {name: _optimizer(net.to(self.device), self.train) for name, net in self.networks.items()}
        if checkpoint is not None:
            self._resume(checkpoint)
        self.wrapped = {
            name: self.fabric.setup(net.train(), self.optimizers[name]) for name, net in self.networks.items()
        }

    def _update(self, batches: Iterator[TrainBatch]) -> None:
        """One step of the discriminators, where they take part, and one of the generator."""
        with self.clock.waiting():
            batch = next(batches)
            segments = self.data.segments(batch)
        rate = learning_rate(self.step, batch.origin.epoch, self.train)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate
        real = segments.waveform.to(self.device)
        frames = segments.frames
        frames = log_mel(real, self.loss_mel.sample_rate, self.config.model.mel) if frames is None else frames
        fake: Tensor = self.wrapped["generator"][0](frames.to(self.device))
        first = self.train.adversarial_from
        plays = first is not None and self.step >= first
        sums = self._teach(real, fake.detach()) if plays else {}
        losses = self._losses(real, fake, plays=plays)
        loss = torch.stack([weight * value for weight, value in losses.values()]).sum()
        self.fabric.backward(loss)
        sums |= {name: value.detach() for name, (_, value) in losses.items()}
        sums |= {"loss": loss.detach(), "grad_norm": self._apply("generator")}
        self.finite.add(torch.stack(list(sums.values())).sum())
        told = {"sample_size": 1.0, "silent": segments.silent / len(real), "audio_seconds": batch.audio_seconds}
        self.window.add(sums | {name: torch.tensor(value, device=self.device) for name, value in told.items()})
        self._position = self.stream.state_after(batch.origin)
        self.step += 1

    def _teach(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """A step of the discriminators."""
        judge = self.wrapped["discriminators"][0]
        judge.requires_grad_(True)
        loss = discriminator_loss(judge(real)[0], judge(fake)[0])
        self.fabric.backward(loss)
        return {"discriminator": loss.detach(), "discriminator_grad_norm": self._apply("discriminators")}

    def _losses(self, real: Tensor, fake: Tensor, *, plays: bool) -> dict[str, tuple[float, Tensor]]:
        """What the generator minimises, each with its weight."""
        train = self.train
        losses = {"mel": (train.mel_weight, mel_loss(fake, real, self.loss_mel))}
        if train.stft_weight > 0:
            losses["stft"] = (train.stft_weight, stft_loss(fake, real))
        if plays:
            judge = self.wrapped["discriminators"][0]
            judge.requires_grad_(False)
            with torch.no_grad():
                _, real_maps = judge(real)
            scores, maps = judge(fake)
            losses["adversarial"] = (1.0, adversarial_loss(scores))
            losses["feature_matching"] = (train.matching_weight, feature_matching_loss(real_maps, maps))
        return losses

    def _apply(self, name: str) -> Tensor:
        """Clips the gradient if that is wanted, makes the update, and returns the norm from before."""
        parameters = list(self.networks[name].parameters())
        limit = self.train.clip_norm
        norm = nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)
        optimizer = self.wrapped[name][1]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm.detach()

    def _values(self) -> dict[str, float]:
        """Fetches the window's metrics."""
        self.finite.check(self.step)
        values = {**self.window.fetch(), **self.clock.fetch()}
        values["learning_rate"] = self.optimizers["generator"].param_groups[0]["lr"]
        values["epoch"] = float(self._position["epoch"])
        values["audio_per_second"] = values["audio_seconds"] / values["seconds"]
        if values["silent"] >= 1.0:
            raise TrainingError(f"All segments up to step {self.step} are silent: check the audio of the corpus.")
        return values

    def _request_stop(self) -> None:
        self._stop = True

    def _save(self, *, must: bool) -> None:
        """Writes a checkpoint and the vocoder; where the disk is full, goes on without unless it `must` be written."""
        self.finite.check(self.step)
        if self.step == self._saved:
            return
        tensors = {
            f"{name}.{key}": value
            for name, net in self.networks.items()
            for key, value in pack(net, self.optimizers[name]).items()
        }
        tensors |= {f"window.{name}": value.detach().cpu() for name, value in self.window.sums.items()}
        state = {"stream": self._position, "identity": self.identity}
        told = f"trained on {self.data.title}, {self.step} of {self.train.steps} steps"
        try:
            save_checkpoint(self.folder / "checkpoints", Checkpoint(self.step, tensors, state), keep=self.train.keep)
            save_vocoder(self.generator, self.folder, weights=told)
        except Exception as error:
            if must or disk_full(error) is None:
                raise
            logger.error("The disk of %s is full: there is no checkpoint of step %d.", self.folder, self.step)
        self._saved = self.step

    def _resume(self, checkpoint: Checkpoint) -> None:
        for name, net in self.networks.items():
            unpack(_below(checkpoint.tensors, name), net, self.optimizers[name])
        self.window.sums = {k: v.to(self.device) for k, v in _below(checkpoint.tensors, "window").items()}
        self.step = self._saved = checkpoint.step
        self._position = dict(checkpoint.state["stream"])
        self.stream.load_state(self._position)
        logger.info("Going on from step %d.", self.step)


def learning_rate(step: int, epoch: int, config: VocoderTrainConfig) -> float:
    """The rate of update `step`, from 0 on, in epoch `epoch`."""
    if config.schedule == "cosine":
        return config.learning_rate * (1 + math.cos(math.pi * min(step / config.steps, 1.0))) / 2
    return float(config.learning_rate * config.decay**epoch)


def _optimizer(module: nn.Module, config: VocoderTrainConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        module.parameters(),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
    )


def _identity(config: VocoderConfig, data: VocoderData, source: FeatureSource | None) -> dict[str, Any]:
    """What must be equal for a run to go on, as JSON gives it back."""
    varies = RUN_KEYS if config.train.schedule == "epochs" else RUN_KEYS - {"steps"}
    settings = {k: v for k, v in asdict(config.train).items() if k not in varies}
    told = None if source is None else {k: v for k, v in to_dict(source).items() if (k, v) != ("matching", None)}
    found: dict[str, Any] = json.loads(
        json.dumps({"model": to_dict(config.model), "train": settings, "source": told, **data.identity})
    )
    return found


def _below(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}


def _note(values: Mapping[str, float]) -> str:
    return f"mel {values['mel']:.3f}, {values['audio_per_second']:.1f} s of audio/s" if values else ""
