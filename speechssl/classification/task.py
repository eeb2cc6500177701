"""One label per utterance, or one per field: softmax over the classes of training.

B batch, T frames, D width, C classes of all fields together.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from speechssl.classification.config import ClassificationConfig
from speechssl.classification.data import Classes, label_of, make_classes, read_splits
from speechssl.data.corpus import Corpus
from speechssl.files import replacing
from speechssl.head.utterance import build_utterance_head
from speechssl.metric.classification import (
    accuracy_by_field,
    all_fields_accuracy,
    macro_f1,
    recalls_by_class,
    unweighted_average_recall,
)
from speechssl.result import Evaluation, MetricValue
from speechssl.task import Task, TaskData
from speechssl.types import LossOutput, Utterance

EXAMPLES = 10  # predictions shown with a result


class Classification(Task):
    """A task that gives utterances labels; folders name it, and say where its data is."""

    config: ClassificationConfig
    higher_is_better = True

    def __init__(self, config: ClassificationConfig) -> None:
        super().__init__(config)
        self.metric = config.metric

    def read(self, corpus: Corpus) -> Mapping[str, Sequence[Utterance]]:
        """The labelled utterances of 'train', 'dev' and 'test'; for folders whose splits have other names."""
        return read_splits(corpus, self.config)

    @override
    def prepare(self, corpus: Corpus) -> TaskData:
        splits = self.read(corpus)
        classes = make_classes(splits["train"], self.config.fields)
        return TaskData(splits, {"classes": classes, "weights": self._weights(splits["train"], classes)})

    @override
    def groups(self, data: TaskData) -> Sequence[str] | None:
        if self.config.balance != "draws":
            return None
        return [" ".join(label_of(u, name) for name in self.config.fields) for u in data.splits["train"]]

    @override
    def state(self, data: TaskData) -> Mapping[str, Any]:
        return {"classes": {name: list(classes) for name, classes in _classes(data).of_field.items()}}

    @override
    def restore(self, state: Mapping[str, Any]) -> TaskData:
        classes = Classes({name: tuple(found) for name, found in state["classes"].items()})
        return TaskData({}, {"classes": classes, "weights": [None] * len(classes.of_field)})

    @override
    def build_head(self, size: int, frame_rate: float, data: TaskData) -> nn.Module:
        del frame_rate
        config = self.config
        outputs = len(_classes(data))
        return build_utterance_head(config.head, size, outputs, hidden_size=config.hidden_size, dropout=config.dropout)

    @override
    def loss(
        self,
        head: nn.Module,
        features: Tensor,
        lengths: Tensor,
        utterances: Sequence[Utterance],
        data: TaskData,
        generator: torch.Generator,
    ) -> LossOutput:
        del generator
        scores = _scores(head, features, lengths, data)
        targets = torch.tensor([_classes(data).encode(u) for u in utterances], device=features.device)  # (B, fields)
        total = features.new_zeros(())
        right = torch.ones(len(utterances), dtype=torch.bool, device=features.device)
        for part, target, weight in zip(scores, targets.unbind(dim=1), data.extra["weights"], strict=True):
            total = total + F.cross_entropy(part, target, weight=_on(weight, part), reduction="sum")
            right &= part.argmax(dim=1) == target
        return LossOutput(total, torch.tensor(len(utterances)), {"accuracy": right.sum()})

    @override
    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance], data: TaskData
    ) -> list[Any]:
        """One mapping per utterance: field -> {'label', 'probability'}."""
        found: list[dict[str, Any]] = [{} for _ in utterances]
        scores = _scores(head, features, lengths, data)
        for (name, classes), part in zip(_classes(data).of_field.items(), scores, strict=True):
            best, place = part.softmax(dim=1).max(dim=1)
            for row, probability, index in zip(found, best.tolist(), place.tolist(), strict=True):
                row[name] = {"label": classes[index], "probability": round(probability, 6)}
        return found

    @override
    def evaluate(
        self, head: nn.Module, predictions: Mapping[str, Any], data: TaskData, split: str, folder: Path
    ) -> Evaluation:
        utterances = data.splits[split]
        names = list(_classes(data).of_field)
        references = [{name: label_of(u, name) for name in names} for u in utterances]
        hypotheses = [{name: str(predictions[u.id][name]["label"]) for name in names} for u in utterances]
        metrics = {"accuracy": all_fields_accuracy(references, hypotheses)}
        breakdown: dict[str, Mapping[str, MetricValue]] = {}
        for name in names:
            said, heard = [r[name] for r in references], [h[name] for h in hypotheses]
            breakdown[f"recall by {name}"] = recalls_by_class(said, heard)
            if len(names) == 1:
                metrics |= {"uar": unweighted_average_recall(said, heard), "macro f1": macro_f1(said, heard)}
        if len(names) > 1:
            breakdown["accuracy by field"] = accuracy_by_field(references, hypotheses)
        files: dict[str, str] = {}
        if split == "test":
            files["predictions"] = _write(folder / "predictions.tsv", utterances, predictions, names)
        return Evaluation(
            metrics=metrics,
            breakdown=breakdown,
            files=files,
            examples=[_example(u, predictions[u.id], names) for u in utterances[:EXAMPLES]],
        )

    def _weights(self, utterances: Sequence[Utterance], classes: Classes) -> list[Tensor | None]:
        """Of each field's classes: the mean over classes of one is 1, as scikit-learn's 'balanced'."""
        if self.config.balance != "loss":
            return [None] * len(classes.of_field)
        codes = torch.tensor([classes.encode(u) for u in utterances])  # (N, fields)
        counts = [torch.bincount(row, minlength=n) for row, n in zip(codes.unbind(1), classes.sizes(), strict=True)]
        return [len(utterances) / (len(row) * row.float()) for row in counts]


def _scores(head: nn.Module, features: Tensor, lengths: Tensor, data: TaskData) -> tuple[Tensor, ...]:
    """The scores of each field, (B, its classes) float32."""
    scores: Tensor = head(features, lengths)
    return torch.split(scores.float(), _classes(data).sizes(), dim=1)


def _classes(data: TaskData) -> Classes:
    classes: Classes = data.extra["classes"]
    return classes


def _on(weight: Tensor | None, like: Tensor) -> Tensor | None:
    return None if weight is None else weight.to(like)


def _example(utterance: Utterance, prediction: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    reference = ", ".join(label_of(utterance, name) for name in names)
    return {
        "title": utterance.id,
        "reference": reference,
        "hypothesis": ", ".join(prediction[n]["label"] for n in names),
    }


def _write(path: Path, utterances: Sequence[Utterance], predictions: Mapping[str, Any], names: Sequence[str]) -> str:
    columns = [f"{name} {what}" for name in names for what in ("reference", "hypothesis", "probability")]
    lines = ["\t".join(["utterance", *columns])]
    for utterance in utterances:
        cells = [utterance.id]
        for name in names:
            found = predictions[utterance.id][name]
            cells += [label_of(utterance, name), found["label"], f"{found['probability']:.6f}"]
        lines.append("\t".join(cells))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path.name
