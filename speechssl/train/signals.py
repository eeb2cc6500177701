"""Signals that ask a run to stop, and how processes agree on the step to stop at."""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
"""SIGUSR1 is what Slurm is mostly told to send before it takes a job off its machines."""
ECHO = 1.0
"""Seconds within which another signal is the same request: Slurm and torchrun both pass theirs on to every process."""


@contextmanager
def stop_signals(stop: Callable[[], None]) -> Iterator[None]:
    """The first signal calls `stop`, so that the current step ends; a later one ends the process at once."""
    first: list[float] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not first:
            first.append(now)
            stop()
        elif now - first[0] > ECHO:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    try:
        before: dict[int, Any] = {n: signal.signal(n, handle) for n in SIGNALS}
    except ValueError:  # only the main thread may set handlers
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Agreement:
    """Whether any process wants to stop, as a number that rides on the sums of a step.

    A GPU is not waited for: what was said at a step is read at the next one, while that is being computed. All
    processes read the same number at the same step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._said: deque[tuple[Tensor, Any]] = deque()

    def say(self, wishes: Tensor) -> None:
        """`wishes`: how many processes want to stop, scalar on the device."""
        if self.device.type != "cuda":
            self._said.append((wishes, None))
            return
        host = torch.empty((), pin_memory=True)
        host.copy_(wishes, non_blocking=True)
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]  # untyped in torch
        event.record()
        self._said.append((host, event))

    def stops(self) -> bool:
        """Called once after each `say`."""
        if self.device.type == "cuda" and len(self._said) < 2:
            return False
        host, event = self._said.popleft()
        if event is not None:
            event.synchronize()
        return float(host) > 0
