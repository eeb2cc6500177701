"""The probe that tells the class of each frame, such as its phone.

N frames of a batch, F labelled frames of an utterance, C classes.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from speechssl.classification.data import Classes
from speechssl.data.spans import Places, Span, find_runs, lay_out
from speechssl.errors import ManifestError
from speechssl.metric.classification import accuracy, macro_f1, recalls_by_class, unweighted_average_recall
from speechssl.result import Evaluation
from speechssl.task import TaskData
from speechssl.types import LossOutput

from .data import Splits
from .frames import FrameProbe, Read, Values, time_of
from .head import timed
from .regress import EXAMPLES, write_lines

logger = logging.getLogger(__name__)
Decided = NDArray[np.float64]
"""(F, 2): which class, and its probability."""


class FrameClassProbe(FrameProbe):
    """Predicts a class of each frame."""

    @override
    def encode(self, splits: Splits, spans: Read, root: Path) -> TaskData:
        name = self.config.fields[0]
        seconds: dict[str, float] = defaultdict(float)
        for utterance in splits["train"]:
            for span in spans[utterance.id]:
                seconds[span.value] += span.end - span.begin
        if len(seconds) < 2:
            raise ManifestError(f"The corpus {root} has one class of '{name}' in 'train': {next(iter(seconds))}.")
        places = {label: k for k, label in enumerate(sorted(seconds))}
        known = self._known(splits, spans, places, root)
        laid = {
            i: lay_out(found, [places[s.value] for s in found], f"The utterance '{i}' of {root}")
            for i, found in known.items()
        }
        shares = torch.tensor([seconds[label] for label in places], dtype=torch.float64)
        weight = (shares.sum() / (len(places) * shares)).float() if self.config.balance == "loss" else None
        return TaskData(splits, {"classes": Classes({name: tuple(places)}), "weights": [weight], "spans": laid})

    def _known(self, splits: Splits, spans: Read, places: Mapping[str, int], root: Path) -> dict[str, list[Span]]:
        """Utterance id -> its spans whose class occurs in training."""
        kept: dict[str, list[Span]] = {}
        for split, utterances in splits.items():
            kept |= {u.id: [s for s in spans[u.id] if s.value in places] for u in utterances}
            left = [s for u in utterances for s in spans[u.id] if s.value not in places]
            if left and (not self.config.leave_out_unknown or not any(kept[u.id] for u in utterances)):
                raise ManifestError(
                    f"The corpus {root} has {len(left)} spans in '{split}' of classes without a training example: "
                    f"{', '.join(sorted({repr(s.value) for s in left})[:5])}. Add some to 'train', or set "
                    "`leave_out_unknown=true`."
                )
            if left:
                message = "probe of frames %s: %d spans of classes that training lacks are left out"
                logger.warning(message, split, len(left))
        return kept

    @override
    def loss_of_frames(self, scores: Tensor, values: Values, data: TaskData) -> LossOutput:
        targets = torch.from_numpy(values).long().to(scores.device)  # (N,)
        weight: Tensor | None = data.extra["weights"][0]
        total = F.cross_entropy(scores, targets, None if weight is None else weight.to(scores), reduction="sum")
        return LossOutput(total, torch.tensor(len(targets)), {"accuracy": (scores.argmax(dim=1) == targets).sum()})

    @override
    def decide(self, scores: Tensor, data: TaskData) -> Decided:
        probability, code = scores.softmax(dim=1).max(dim=1)
        return torch.stack((code.double(), probability.double()), dim=1).cpu().numpy()

    @override
    def evaluate(
        self, head: nn.Module, predictions: Mapping[str, Any], data: TaskData, split: str, folder: Path
    ) -> Evaluation:
        name, utterances = self.config.fields[0], data.splits[split]
        places, wanted, found = self.labelled(head, predictions, data, split)
        references: list[int] = np.concatenate(wanted).astype(np.int64).tolist()
        hypotheses: list[int] = np.concatenate(found)[:, 0].astype(np.int64).tolist()
        units = self.units([len(part) for part in places], utterances)
        metrics = {
            "accuracy": accuracy(references, hypotheses, groups=units),
            "uar": unweighted_average_recall(references, hypotheses, groups=units),
            "macro f1": macro_f1(references, hypotheses, groups=units),
        }
        labels = _labels(data, name)
        recalls = recalls_by_class(references, hypotheses, groups=units)
        files: dict[str, str] = {}
        if split == "test":
            lines = [f"utterance\tstart\tend\t{name} reference\t{name} hypothesis\tprobability"]
            for u, where, said, heard in zip(utterances, places, wanted, found, strict=True):
                lines += _rows(u.id, where, said, heard, labels=labels, frame_rate=timed(head).frame_rate)
            files["predictions"] = write_lines(folder / "predictions.tsv", lines)
        return Evaluation(
            metrics={key: replace(value, unit="frames") for key, value in metrics.items()},
            breakdown={f"recall by {name}": {labels[int(k)]: replace(v, unit="frames") for k, v in recalls.items()}},
            files=files,
            examples=[
                {"title": u.id, "reference": _string(p, w, labels), "hypothesis": _string(p, f[:, 0], labels)}
                for u, p, w, f in list(zip(utterances, places, wanted, found, strict=True))[:EXAMPLES]
            ],
        )

    @override
    def describe(self, found: NDArray[Any], frame_rate: float, data: TaskData) -> list[dict[str, Any]]:
        """Stretches of one class, whose probability is the mean over their frames."""
        name = self.config.fields[0]
        labels = _labels(data, name)
        return [
            {
                **time_of(run.start, run.stop, frame_rate),
                name: {"label": labels[int(found[run.start, 0])], "probability": round(float(found[run, 1].mean()), 6)},
            }
            for run in find_runs(np.arange(len(found)), found[:, 0])
        ]


def _labels(data: TaskData, name: str) -> tuple[str, ...]:
    classes: Classes = data.extra["classes"]
    return classes.of_field[name]


def _rows(
    utterance: str, places: Places, wanted: Values, found: Decided, *, labels: Sequence[str], frame_rate: float
) -> list[str]:
    """A line for each stretch of frames with one label and one prediction."""
    return [
        f"{utterance}\t{places[run.start] / frame_rate:.4f}\t{(places[run.stop - 1] + 1) / frame_rate:.4f}\t"
        f"{labels[int(wanted[run.start])]}\t{labels[int(found[run.start, 0])]}\t{found[run, 1].mean():.6f}"
        for run in find_runs(places, wanted, found[:, 0])
    ]


def _string(places: Places, codes: NDArray[np.float64], labels: Sequence[str]) -> str:
    """The labels of the stretches, one after the other."""
    return " ".join(labels[int(codes[run.start])] for run in find_runs(places, codes))
