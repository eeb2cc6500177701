"""Speaker verification: x-vectors, cosine scores, equal error rate and minimum detection cost.

B batch, T frames, D width, E embedding.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from speechssl.data.corpus import Corpus
from speechssl.errors import SpeechsslError
from speechssl.files import replacing
from speechssl.metric.detection import equal_error_rate, min_dcf
from speechssl.metric.interval import equal_error_rate_interval
from speechssl.result import Evaluation, MetricValue
from speechssl.task import Task, TaskData
from speechssl.types import LossOutput, Utterance

from .config import SpeakerVerificationConfig
from .data import ACROSS, WITHIN, Trial, make_trials, read_splits, speakers_of
from .head import XVector

PRIORS = (0.01, 0.05)


class SpeakerVerification(Task):
    """SUPERB's speaker verification, with trials within one language as the headline."""

    name = "speaker_verification"
    metric = "eer"
    config: SpeakerVerificationConfig

    def __init__(self, config: SpeakerVerificationConfig) -> None:
        super().__init__(config)
        self._trials: dict[tuple[str, ...], list[Trial]] = {}

    @override
    def prepare(self, corpus: Corpus) -> TaskData:
        splits = read_splits(corpus, self.config)
        return TaskData(splits=splits, extra={"speakers": speakers_of(splits["train"])})

    @override
    def state(self, data: TaskData) -> Mapping[str, Any]:
        return {"speakers": list(data.extra["speakers"])}

    @override
    def build_head(self, size: int, frame_rate: float, data: TaskData) -> nn.Module:
        return XVector(size, len(data.extra["speakers"]), frame_rate=frame_rate, config=self.config)

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
        index = {speaker: number for number, speaker in enumerate(data.extra["speakers"])}
        speakers = torch.tensor([index[str(u.labels["speaker"])] for u in utterances], device=features.device)
        return _x_vector(head).loss(features, lengths, speakers)

    @override
    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance], data: TaskData
    ) -> list[Any]:
        return list(F.normalize(_x_vector(head).embed(features, lengths), dim=1).cpu())

    @override
    def evaluate(
        self, head: nn.Module, predictions: Mapping[str, Any], data: TaskData, split: str, folder: Path
    ) -> Evaluation:
        trials = self._make_trials(data.splits[split])
        interval = split == "test"  # dev is measured often, and only its rate decides
        scores = score_trials(trials, predictions)
        kinds = {kind: _rows(trials, kind=kind) for kind in (WITHIN, ACROSS)}
        kinds = {kind: rows for kind, rows in kinds.items() if _has_both(trials, rows)}
        headline = kinds.get(WITHIN, kinds.get(ACROSS, []))
        metrics = {"eer": _eer(trials, scores, headline, interval=interval)}
        target, nontarget = _sides(trials, scores, headline)
        for prior in PRIORS:
            value = min_dcf(target, nontarget, p_target=prior)
            metrics[f"min dcf {prior}"] = MetricValue(value, len(headline), "trials")
        languages = sorted({str(trials[i].first.labels.get("language")) for i in kinds.get(WITHIN, [])})
        by_language = {name: _rows(trials, kind=WITHIN, language=name) for name in languages}
        everything = {**kinds, "all": list(range(len(trials)))}
        files: dict[str, str] = {}
        if split == "test":
            files["scores"] = _write(folder / "scores.tsv", trials, scores)
        return Evaluation(
            metrics=metrics,
            breakdown={
                "eer by trial kind": {
                    k: _eer(trials, scores, rows, interval=interval) for k, rows in everything.items()
                },
                "eer by language": {
                    k: _eer(trials, scores, rows, interval=interval)
                    for k, rows in by_language.items()
                    if _has_both(trials, rows)
                },
            },
            files=files,
        )

    def _make_trials(self, utterances: Sequence[Utterance]) -> list[Trial]:
        """Those of a split, made once."""
        key = tuple(u.id for u in utterances)
        if key not in self._trials:
            self._trials[key] = make_trials(utterances, max_trials=self.config.max_trials)
        return self._trials[key]

    @override
    def infer(
        self,
        head: nn.Module,
        features: Mapping[str, Tensor],
        utterances: Sequence[Utterance],
        data: TaskData,
        folder: Path,
    ) -> Any:
        if len(utterances) < 2:
            raise SpeechsslError("Speaker verification compares files: give at least two.")
        rows = []
        for utterance in utterances:
            one = features[utterance.id]
            rows.extend(self.predict(head, one[None], torch.tensor([len(one)]), [utterance], data))
        similarity = torch.stack(rows) @ torch.stack(rows).T
        return {
            "files": [u.path for u in utterances],
            "cosine": [[round(float(value), 4) for value in row] for row in similarity],
        }


def score_trials(trials: Sequence[Trial], embeddings: Mapping[str, Tensor]) -> list[float]:
    """Cosine similarity of each trial; the embeddings, (E,) each, have unit length."""
    first = torch.stack([embeddings[t.first.id] for t in trials])
    second = torch.stack([embeddings[t.second.id] for t in trials])
    scores: list[float] = (first * second).sum(dim=1).double().tolist()
    return scores


def _x_vector(head: nn.Module) -> XVector:
    if not isinstance(head, XVector):
        raise SpeechsslError(f"`head` must be an XVector, but is a {type(head).__name__}.")
    return head


def _rows(trials: Sequence[Trial], *, kind: str, language: str | None = None) -> list[int]:
    return [
        i
        for i, t in enumerate(trials)
        if t.kind == kind and (language is None or str(t.first.labels.get("language")) == language)
    ]


def _has_both(trials: Sequence[Trial], rows: Sequence[int]) -> bool:
    return len({trials[i].target for i in rows}) == 2


def _sides(trials: Sequence[Trial], scores: Sequence[float], rows: Sequence[int]) -> tuple[list[float], list[float]]:
    target = [scores[i] for i in rows if trials[i].target]
    nontarget = [scores[i] for i in rows if not trials[i].target]
    return target, nontarget


def _eer(trials: Sequence[Trial], scores: Sequence[float], rows: Sequence[int], *, interval: bool) -> MetricValue:
    """The equal error rate; its interval resamples utterances, and so holds for these speakers."""
    target, nontarget = _sides(trials, scores, rows)
    rate = equal_error_rate(target, nontarget)[0]
    if not interval:
        return MetricValue(rate, len(rows), "trials")
    pairs = [
        [[t.first.id, t.second.id] for t in (trials[i] for i in rows) if t.target is side] for side in (True, False)
    ]
    low, high = equal_error_rate_interval(
        target, nontarget, target_units=pairs[0], nontarget_units=pairs[1], replicates=200
    )
    return MetricValue(rate, len(rows), "trials", low, high)


def _write(path: Path, trials: Sequence[Trial], scores: Sequence[float]) -> str:
    lines = ["trial\tlabel\tscore\tkind"]
    for trial, score in zip(trials, scores, strict=True):
        label = "target" if trial.target else "nontarget"
        lines.append(f"{trial.first.id} {trial.second.id}\t{label}\t{score:.6f}\t{trial.kind}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path.name


TASK = SpeakerVerification
