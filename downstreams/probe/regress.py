"""The probe that tells a number, such as a quality score, an age or a sum of symptoms.

B batch, T frames, D width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from speechssl.classification.data import label_of
from speechssl.data.corpus import Corpus, describe_utterance
from speechssl.errors import ManifestError
from speechssl.files import replacing
from speechssl.head.utterance import build_utterance_head
from speechssl.metric.regression import MEASURES, regression_metrics
from speechssl.result import Evaluation
from speechssl.task import Task, TaskData
from speechssl.types import LossOutput, Utterance

from .config import ProbeConfig, about, lower_is_better
from .data import check_groups, choose_numbered, number_of, read_everything
from .head import StandardisedHead

EXAMPLES = 10  # predictions shown with a result
MANY = 2000  # utterances from which on Kendall's tau, whose interval costs their square, is only measured if chosen by
TINY = 1e-8  # keeps the concordance of equal numbers finite


class NumberProbe(Task):
    """A regression on any label."""

    name = "probe"
    config: ProbeConfig

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__(config)
        self.about = about(config)
        self.metric = config.metric
        self.higher_is_better = not lower_is_better(config.metric)

    @override
    def prepare(self, corpus: Corpus) -> TaskData:
        return self.gather(read_everything(corpus, self.config), corpus.root)

    def gather(self, everything: Mapping[str, Sequence[Utterance]], root: Path) -> TaskData:
        """Chooses what has a number, and finds the scale of the numbers of training."""
        splits = choose_numbered(everything, self.config, root)
        check_groups(splits, self.config, root)
        name = self.config.fields[0]
        if self.config.system is not None:
            _check_systems(splits, self.config.system, root)
        numbers = {u.id: number_of(u, name, root) for part in splits.values() for u in part}
        train = torch.tensor([numbers[u.id] for u in splits["train"]], dtype=torch.float64)
        scale = {"mean": float(train.mean()), "deviation": float(train.std(correction=0))}
        return TaskData(splits, {"numbers": numbers, "scale": scale})

    @override
    def state(self, data: TaskData) -> Mapping[str, Any]:
        return {"scale": data.extra["scale"]}

    @override
    def build_head(self, size: int, frame_rate: float, data: TaskData) -> nn.Module:
        del frame_rate, data
        config = self.config
        build = StandardisedHead if config.standardise else build_utterance_head
        return build(config.head, size, 1, hidden_size=config.hidden_size, dropout=config.dropout)

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
        scale = data.extra["scale"]
        values = torch.tensor([data.extra["numbers"][u.id] for u in utterances], dtype=torch.float64)
        wanted = ((values - scale["mean"]) / scale["deviation"]).float().to(features.device)  # (B,)
        given = head(features, lengths).float()[:, 0]
        return LossOutput(regression_loss(self.config.loss, given, wanted), torch.tensor(len(utterances)))

    @override
    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance], data: TaskData
    ) -> list[Any]:
        """One mapping per utterance: label -> number."""
        scale = data.extra["scale"]
        given = head(features, lengths)[:, 0].double().cpu() * scale["deviation"] + scale["mean"]
        return [{self.config.fields[0]: round(value, 6)} for value in given.tolist()]

    @override
    def evaluate(
        self, head: nn.Module, predictions: Mapping[str, Any], data: TaskData, split: str, folder: Path
    ) -> Evaluation:
        config, utterances = self.config, data.splits[split]
        name = config.fields[0]
        references = [data.extra["numbers"][u.id] for u in utterances]
        hypotheses = [predictions[u.id][name] for u in utterances]
        many = len(utterances) > MANY and not config.metric.endswith("ktau")
        metrics = regression_metrics(
            references,
            hypotheses,
            systems=None if config.system is None else [label_of(u, config.system) for u in utterances],
            groups=None if config.group is None else [label_of(u, config.group) for u in utterances],
            measures=[measure for measure in MEASURES if not (many and measure == "ktau")],
        )
        files: dict[str, str] = {}
        if split == "test":
            lines = [f"{u.id}\t{r:g}\t{h:.6f}" for u, r, h in zip(utterances, references, hypotheses, strict=True)]
            files["predictions"] = write_lines(
                folder / "predictions.tsv", [f"utterance\t{name} reference\t{name}", *lines]
            )
        return Evaluation(
            metrics=metrics,
            files=files,
            examples=[
                {"title": u.id, "reference": f"{r:g}", "hypothesis": f"{h:.3g}"}
                for u, r, h in zip(utterances[:EXAMPLES], references, hypotheses, strict=False)
            ],
        )


def regression_loss(kind: str, given: Tensor, wanted: Tensor) -> Tensor:
    """Summed over the B utterances: squared or absolute errors, or B times 1 less the concordance; both (B,)."""
    if kind == "mse":
        return (given - wanted).square().sum()
    if kind == "mae":
        return (given - wanted).abs().sum()
    x, y = given - given.mean(), wanted - wanted.mean()
    bottom = x.square().mean() + y.square().mean() + (given.mean() - wanted.mean()).square()
    return len(given) * (1.0 - 2.0 * (x * y).mean() / (bottom + TINY))


def _check_systems(splits: Mapping[str, Sequence[Utterance]], system: str, root: Path) -> None:
    for split in ("dev", "test"):
        without = [u.id for u in splits[split] if not label_of(u, system)]
        if without:
            raise ManifestError(
                f"{describe_utterance(root, without[0])} is the first of {len(without)} in '{split}' that have no "
                f"'{system}': label them, or set `system=null`."
            )


def write_lines(path: Path, lines: Sequence[str]) -> str:
    """Writes a file whole or not at all; returns its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path.name
