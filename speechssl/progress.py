"""Progress of long work: a bar with rate and time left on a terminal, a line every few seconds elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

logger = logging.getLogger(__name__)
LINE_EVERY = 15.0  # seconds between lines where there is no terminal

Advance = Callable[..., None]
"""advance(amount=1.0, note="") moves the bar and shows `note` (such as a loss) beside it."""


class _RateColumn(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {self.unit}/s", style="magenta")


@contextmanager
def progress(description: str, total: float, *, unit: str = "it") -> Iterator[Advance]:
    """Shows the progress of `total` units of work on standard error.

    Args:
        description: what is being done, such as 'Extracting features'.
        total: units of work; `unit` names them, such as 's of audio'.

    Yields:
        advance(amount=1.0, note="").
    """
    if not sys.stderr.isatty():
        yield from _lines(description, total, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        _RateColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=60.0) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(amount: float = 1.0, note: str = "") -> None:
            bar.update(task, advance=amount, note=note)

        yield advance


def _lines(description: str, total: float, unit: str) -> Iterator[Advance]:
    begin = last = time.monotonic()
    done = 0.0

    def advance(amount: float = 1.0, note: str = "") -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= LINE_EVERY:
            last = now
            rate = done / max(now - begin, 1e-9)
            left = f" {(total - done) / rate:.0f} s left" if rate > 0 else ""
            print(
                f"{description}: {100 * done / max(total, 1e-9):.0f} %, {rate:.1f} {unit}/s,{left} {note}",
                file=sys.stderr,
                flush=True,
            )

    yield advance
    seconds = time.monotonic() - begin
    print(
        f"{description}: {done:.0f} {unit} in {seconds:.1f} s ({done / max(seconds, 1e-9):.1f} {unit}/s)",
        file=sys.stderr,
        flush=True,
    )
