"""What is watched during a run: numbers that are not finite, a collapse, and whether the device is kept busy."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from speechssl.errors import SpeechsslError

LEAST_LOSS_SCALE = 1e-4
"""Below it the loss scale has been halved 20 times and more in a row; fairseq's `min_loss_scale`."""


class TrainingError(SpeechsslError):
    """The optimisation broke down; the message says at which step and why."""


class FiniteGuard:
    """Stops a run whose loss or gradient is not finite; looks only when asked, so that no step waits for the device."""

    def __init__(self) -> None:
        self._values: list[Tensor] = []

    def add(self, value: Tensor) -> None:
        """A scalar of one step, which is not finite if the step is broken."""
        self._values.append(value.detach())

    def check(self, step: int) -> None:
        """Looks at all steps since the last check; `step` is the last of them.

        Raises:
            TrainingError: with the first broken step.
        """
        values, self._values = self._values, []
        if not values:
            return
        bad = (~torch.isfinite(torch.stack(values))).nonzero()
        if len(bad):
            raise TrainingError(
                f"The loss or its gradient is not finite at step {step - len(values) + 1 + int(bad[0])}: lower "
                "`learning_rate` or `clip_norm`, or use precision=float32; the last checkpoint is from before."
            )


class CollapseGuard:
    """Stops a run one of whose values has stayed below the least of a healthy run."""

    def __init__(self, limits: Mapping[str, float], *, patience: int) -> None:
        """
        Args:
            limits: logged value -> least one.
            patience: steps that it may stay below.
        """
        self.limits = limits
        self.patience = patience
        self.healthy: dict[str, int] = {}
        """Value -> last step at which it was well; part of a checkpoint."""

    def check(self, step: int, values: Mapping[str, float]) -> None:
        """Looks at the values of a log line.

        Raises:
            TrainingError: with the value that is low, and since when.
        """
        for name, least in self.limits.items():
            if name not in values or values[name] >= least:
                self.healthy[name] = step
            elif step - self.healthy.get(name, 0) >= self.patience:
                raise TrainingError(
                    f"The model has collapsed at step {step} ({name.replace('_', ' ')} {values[name]:.2f}, below "
                    f"{least:g} since step {self.healthy.get(name, 0)}): lower `learning_rate`, lengthen `warmup`, or "
                    "look at the data and its labels."
                )


def check_loss_scale(step: int, scale: float) -> None:
    """
    Raises:
        TrainingError: float16 overflows at any scale.
    """
    if scale < LEAST_LOSS_SCALE:
        raise TrainingError(
            f"The loss scale has fallen to {scale:g} at step {step}, so that every gradient overflows: lower "
            "`learning_rate`, or use precision=bf16."
        )


class DeviceClock:
    """How much of the time the device has work, rather than waits for data."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._waits: list[Any] = []
        self._begin = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around each wait for a micro-batch.

        A GPU may still be busy with what was queued before: two events in its own queue enclose the time in which it
        was not.
        """
        if self.device.type == "cuda":
            events: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]  # in torch
            events[0].record()
            yield
            events[1].record()
            self._waits.append(events)
        else:
            begin = time.perf_counter()
            yield
            self._waits.append(time.perf_counter() - begin)

    def fetch(self) -> dict[str, float]:
        """'seconds' since the last call and 'device_use' as a share of them; on a GPU its peak 'memory_gb' too."""
        values: dict[str, float] = {}
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            idle = sum(begin.elapsed_time(end) for begin, end in self._waits) / 1000
            values["memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            idle = sum(self._waits)
        self._waits = []
        now = time.perf_counter()
        seconds = max(now - self._begin, 1e-9)
        self._begin = now
        return {**values, "seconds": seconds, "device_use": max(1 - idle / seconds, 0.0)}
