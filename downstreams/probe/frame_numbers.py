"""The probe that tells a number of each frame, such as its pitch.

N frames of a batch, F labelled frames of an utterance.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from speechssl.data.spans import lay_out
from speechssl.errors import ManifestError
from speechssl.metric.frames import frame_regression_metrics
from speechssl.result import Evaluation
from speechssl.task import TaskData
from speechssl.types import LossOutput

from .data import Splits, finite_number
from .frames import FrameProbe, Read, Values, time_of
from .head import timed
from .regress import regression_loss, write_lines


class FrameNumberProbe(FrameProbe):
    """Predicts a number of each frame."""

    @override
    def encode(self, splits: Splits, spans: Read, root: Path) -> TaskData:
        name = self.config.fields[0]
        laid = {
            u.id: lay_out(
                spans[u.id],
                [finite_number(s.value, u, name, root) for s in spans[u.id]],
                f"The utterance '{u.id}' of {root}",
            )
            for part in splits.values()
            for u in part
        }
        train = [laid[u.id] for u in splits["train"]]
        values, seconds = np.concatenate([s.values for s in train]), np.concatenate([s.seconds for s in train])
        mean = float(np.average(values, weights=seconds))
        deviation = float(np.sqrt(np.average(np.square(values - mean), weights=seconds)))
        if np.ptp(values) == 0:
            raise ManifestError(f"The corpus {root} has one value of '{name}' in 'train': {values[0]}.")
        return TaskData(splits, {"scale": {"mean": mean, "deviation": deviation}, "spans": laid})

    @override
    def loss_of_frames(self, scores: Tensor, values: Values, data: TaskData) -> LossOutput:
        scale = data.extra["scale"]
        wanted = torch.from_numpy((values - scale["mean"]) / scale["deviation"]).float().to(scores.device)
        return LossOutput(regression_loss(self.config.loss, scores[:, 0], wanted), torch.tensor(len(wanted)))

    @override
    def decide(self, scores: Tensor, data: TaskData) -> NDArray[np.float64]:
        scale = data.extra["scale"]
        found: NDArray[np.float64] = scores[:, 0].double().cpu().numpy() * scale["deviation"] + scale["mean"]
        return found

    @override
    def evaluate(
        self, head: nn.Module, predictions: Mapping[str, Any], data: TaskData, split: str, folder: Path
    ) -> Evaluation:
        name, utterances = self.config.fields[0], data.splits[split]
        places, wanted, found = self.labelled(head, predictions, data, split)
        units = self.units([len(part) for part in places], utterances)
        files: dict[str, str] = {}
        if split == "test":
            lines = [f"utterance\tcentre\t{name} reference\t{name}"]
            for u, where, said, heard in zip(utterances, places, wanted, found, strict=True):
                times = ((where + 0.5) / timed(head).frame_rate).tolist()
                lines += [
                    f"{u.id}\t{t:.4f}\t{r:g}\t{h:.6f}" for t, r, h in zip(times, said.tolist(), heard, strict=True)
                ]
            files["predictions"] = write_lines(folder / "predictions.tsv", lines)
        return Evaluation(frame_regression_metrics(np.concatenate(wanted), np.concatenate(found), units), files=files)

    @override
    def describe(self, found: NDArray[Any], frame_rate: float, data: TaskData) -> list[dict[str, Any]]:
        """Each frame and its number."""
        name = self.config.fields[0]
        return [{**time_of(k, k + 1, frame_rate), name: round(v, 6)} for k, v in enumerate(found.tolist())]
