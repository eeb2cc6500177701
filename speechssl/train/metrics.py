"""Metrics of a pre-training run: summed on the device, fetched now and then, written as JSON lines and TensorBoard."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from speechssl.files import replacing
from speechssl.metric.tallies import summarize

TOTALS = ("audio_seconds", "padded_seconds", "overflows")
"""Sums that are not per scored frame."""


class Window:
    """Sums since the last log line; no value leaves the device before `fetch`."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Adds one step's sums over all processes: 'loss', 'sample_size', the objective's metrics, 'audio_seconds'."""
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def fetch(self) -> dict[str, float]:
        """Returns means per scored frame, perplexities, the share of 'padding', and TOTALS as they are; begins anew."""
        sums, self.sums = self.sums, {}
        totals = {name: float(sums.pop(name)) for name in TOTALS if name in sums}
        values = {**summarize(sums), **totals}
        padded = values.pop("padded_seconds", 0.0)
        return {**values, "padding": 1 - values["audio_seconds"] / padded} if padded else values


class MetricLog:
    """Writes `log.jsonl` and TensorBoard events; lines of steps that will be made again are removed at the start."""

    def __init__(self, folder: Path, *, step: int) -> None:
        """
        Args:
            folder: of the run.
            step: last step that stands.
        """
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.jsonl"
        if path.exists():
            kept = [line for line in read_log(folder) if line["step"] <= step]
            with replacing(path) as partial:
                partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)  # type: ignore[no-untyped-call]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)  # type: ignore[no-untyped-call]  # untyped in torch

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()  # type: ignore[no-untyped-call]  # untyped in torch


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `log.jsonl`, oldest first, up to the first that was cut off or damaged."""
    lines = []
    for text in (folder / "log.jsonl").read_bytes().splitlines():
        try:
            line = json.loads(text)
        except (json.JSONDecodeError, UnicodeDecodeError):
            break
        if not isinstance(line, dict) or "step" not in line:
            break
        lines.append(line)
    return lines
