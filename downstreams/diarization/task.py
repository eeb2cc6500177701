"""Speaker diarization: permutation-invariant activity per frame, diarization error rate.

B batch, T frames, D width, N speakers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from speechssl.answers import moved
from speechssl.data.corpus import Corpus
from speechssl.errors import ManifestError, SpeechsslError
from speechssl.metric.diarization import jaccard_errors
from speechssl.metric.segments import write_rttm
from speechssl.result import Evaluation
from speechssl.task import Task, TaskData
from speechssl.types import LossOutput, Utterance

from .config import DiarizationConfig
from .data import activity_of, read_splits, segments_of, with_duration
from .decision import Decision, choose, fill_up, measure, regions_of, to_segments
from .head import DiarizationHead, permutation_free_loss


class Diarization(Task):
    """SUPERB's speaker diarization."""

    name = "diarization"
    metric = "der"
    config: DiarizationConfig

    @override
    def prepare(self, corpus: Corpus) -> TaskData:
        splits = read_splits(corpus, self.config)
        for split, utterances in splits.items():
            if not any(u.labels["segments"] for u in utterances):
                raise ManifestError(f"Nobody speaks in '{split}' of {corpus.root}: diarization needs segments there.")
        return TaskData(splits=splits)

    @override
    def build_head(self, size: int, frame_rate: float, data: TaskData) -> nn.Module:
        return DiarizationHead(size, frame_rate=frame_rate, config=self.config)

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
        own = _own(head)
        logits = own(features, lengths)
        labels = pad_sequence(
            [
                activity_of(u, frames=n, frame_rate=own.frame_rate, num_speakers=self.config.num_speakers)
                for u, n in zip(utterances, lengths.tolist(), strict=True)
            ],
            batch_first=True,
        ).to(logits.device)  # (B, T, N)
        return LossOutput(permutation_free_loss(logits, labels, lengths).sum(), lengths.sum())

    @override
    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance], data: TaskData
    ) -> list[Any]:
        """Probabilities of each recording, (T, N) arrays over its whole length."""
        own = _own(head)
        activities = own(features, lengths).float().sigmoid().cpu().numpy()
        return [
            fill_up(activity[:n], duration=with_duration(u).duration or 0.0, frame_rate=own.frame_rate)
            for activity, n, u in zip(activities, lengths.tolist(), utterances, strict=True)
        ]

    @override
    def evaluate(
        self, head: nn.Module, predictions: Mapping[str, Any], data: TaskData, split: str, folder: Path
    ) -> Evaluation:
        """On dev, first chooses threshold and median filter, which the head keeps."""
        own, utterances = _own(head), data.splits[split]
        if split == "dev":
            _keep(
                own,
                choose(
                    utterances,
                    predictions,
                    thresholds=self.config.thresholds,
                    medians=self.config.medians,
                    frame_rate=own.frame_rate,
                ),
            )
        errors, found = measure(utterances, predictions, _decision(own), frame_rate=own.frame_rate)
        metrics = errors.metrics()
        files: dict[str, str] = {}
        if split == "test":
            references = [segment for u in utterances for segment in segments_of(u)]
            metrics["jer"] = jaccard_errors(references, found, regions=regions_of(utterances))
            files = {"hypothesis": "hypothesis.rttm", "reference": "reference.rttm"}
            write_rttm(folder / files["hypothesis"], found)
            write_rttm(folder / files["reference"], references)
        return Evaluation(metrics=metrics, files=files)

    @override
    def answer(self, head: nn.Module, features: Tensor, utterance: Utterance, data: TaskData) -> Any:
        """Who speaks from when to when, ordered by the begin."""
        own = _own(head)
        activity = super().answer(head, features, utterance, data)
        found = to_segments(activity, _decision(own), frame_rate=own.frame_rate, recording="speaker")
        ordered = sorted(found, key=lambda segment: segment.start)
        spans = [{"speaker": s.speaker, "start": round(s.start, 3), "end": round(s.end, 3)} for s in ordered]
        return moved(spans, utterance)


def _own(head: nn.Module) -> DiarizationHead:
    if not isinstance(head, DiarizationHead):
        raise SpeechsslError(f"`head` must be a DiarizationHead, but is a {type(head).__name__}.")
    return head


def _decision(head: DiarizationHead) -> Decision:
    # A float32 of 0.3 is not that of Python: rounded back, so that what was chosen is what is applied.
    return Decision(round(float(head.threshold), 6), int(head.median))


def _keep(head: DiarizationHead, decision: Decision) -> None:
    head.threshold.fill_(decision.threshold)
    head.median.fill_(decision.median)


TASK = Diarization
