"""Deepfake detection: is it a person who speaks, or a machine?

The head learns from a few attacks and is measured on attacks of other technologies (`eer`, the primary metric on test)
as well as on all of them (`eer_all`). The best checkpoint is the one with the lowest equal error rate on dev, which
holds seen attacks only.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from downstreams.deepfake_detection import audit, conditions, inference, measure, showing
from downstreams.deepfake_detection.augment import disturb, with_views
from downstreams.deepfake_detection.backends.build import build_detector
from downstreams.deepfake_detection.backends.gmm import MixtureDetector
from downstreams.deepfake_detection.config import DeepfakeConfig
from downstreams.deepfake_detection.data import prepare_set
from downstreams.deepfake_detection.head import Detector
from downstreams.deepfake_detection.labelled import read_labelled, refuse_labelled, write_tested
from downstreams.deepfake_detection.plan import BONA_FIDE, SPLITS
from speechssl.abilities import Joined, Passes, Report
from speechssl.adapt.reading import Disturb
from speechssl.data.corpus import Corpus
from speechssl.errors import SpeechsslError
from speechssl.inference import Prepared
from speechssl.lengths import lengths_to_padding_mask
from speechssl.metric.calibration import Calibration
from speechssl.metric.detection import equal_error_rate
from speechssl.result import Evaluation
from speechssl.task import Task, TaskData
from speechssl.types import LossOutput, Utterance

logger = logging.getLogger(__name__)
INFER_BATCH = 64
"""Windows of a user's files that the head judges at once."""


class DeepfakeDetection(Task):
    """Bona fide or spoofed, one score per utterance: higher = more likely bona fide."""

    name = "deepfake_detection"
    metric = "eer"
    labels_whole = True

    config: DeepfakeConfig

    def __init__(self, config: DeepfakeConfig) -> None:
        super().__init__(config)
        self.listening = inference.Listening()
        self.dev_scored: measure.Scored = []

    @override
    def prepare(self, corpus: Corpus) -> TaskData:
        if self.config.labels == "corpus":
            return self._with_views(_audited(read_labelled(corpus, self.config), corpus.root / "deepfake"), corpus)
        refuse_labelled(corpus)
        if corpus.source != "debian":
            logger.warning("The corpus %s holds no human speech: the class 'bona fide' is only a stand-in", corpus.root)
        made = prepare_set(corpus, self.config.spoof)
        data = TaskData({split: made.utterances(split) for split in SPLITS})
        return self._with_views(_audited(data, made.root), corpus)

    def _with_views(self, data: TaskData, corpus: Corpus) -> TaskData:
        augment, processes = self.config.augment, self.config.spoof.processes
        train = with_views(data.splits["train"], augment, corpus.root / "deepfake_views", processes=processes)
        splits = {**data.splits, "train": train}
        limit = self.config.first_seconds
        return replace(data, splits={split: [_shortened(u, limit) for u in part] for split, part in splits.items()})

    def disturbance(self) -> Disturb | None:
        """What is done to a waveform at each visit (`speechssl.abilities.Disturbs`)."""
        return partial(disturb, self.config.augment) if self.config.augment.anew else None

    @override
    def build_head(self, size: int, frame_rate: float, data: TaskData) -> nn.Module:
        return build_detector(self.config, size, frame_rate=frame_rate)

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
        logits = head(features, lengths)  # (B, 2)
        labels = torch.tensor([_is_real(u) for u in utterances], dtype=torch.long, device=logits.device)
        weights = torch.tensor(self.class_weights(data), device=logits.device)
        loss_sum = (weights[labels] * focal_loss(logits, labels, self.config.focal_gamma)).sum()
        correct = (logits.detach().argmax(dim=1) == labels).sum()
        return LossOutput(loss_sum, torch.tensor(len(utterances), device=logits.device), {"accuracy": correct})

    def fit_head(
        self, head: nn.Module, passes: Passes, data: TaskData, *, generator: torch.Generator, report: Report
    ) -> None:
        """Fits Gaussian mixtures to the frames of each class (`speechssl.abilities.FitsInPasses`)."""
        del data
        if isinstance(head, MixtureDetector):
            head.fit(lambda: map(_frames, passes()), generator=generator, report=report)

    def class_weights(self, data: TaskData) -> tuple[float, float]:
        """Weights of spoofed and bona fide, so that over an epoch each class has its share and the mean weight is 1."""
        train = data.splits["train"]
        real = sum(_is_real(u) for u in train) / len(train)
        share = self.config.bona_fide_weight
        return (1.0 - share) / (1.0 - real), share / real

    @override
    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance], data: TaskData
    ) -> list[Any]:
        logits = head(features, lengths).float().cpu()
        scores: list[Any] = (logits[:, 1] - logits[:, 0]).tolist()
        return scores

    def change_listening(self, settings: Mapping[str, str]) -> None:
        """See `inference.Listening`."""
        self.listening = inference.Listening().changed(settings)

    def prepare_files(self, utterances: Sequence[Utterance], folder: Path) -> Prepared:
        """See `inference.prepare_files`."""
        return inference.prepare_files(utterances, folder, self.config, self.listening)

    @override
    def infer(
        self,
        head: nn.Module,
        features: Mapping[str, Tensor],
        utterances: Sequence[Utterance],
        data: TaskData,
        folder: Path,
    ) -> Any:
        """See `inference.judge_files`."""
        del folder
        scores = {u.id: score for u, score in self._score_alike(head, features, utterances, data)}
        detector = _detection_head(head)
        return inference.judge_files(
            scores,
            utterances,
            threshold=float(detector.threshold),
            calibration=Calibration(*detector.calibration.tolist()),
            prior=self.listening.prior,
        )

    def _score_alike(
        self, head: nn.Module, features: Mapping[str, Tensor], utterances: Sequence[Utterance], data: TaskData
    ) -> Iterator[tuple[Utterance, float]]:
        """Scores of batches in which all have one length."""
        by_length = sorted(utterances, key=lambda u: len(features[u.id]))
        for length, group in groupby(by_length, key=lambda u: len(features[u.id])):
            alike = list(group)
            for first in range(0, len(alike), INFER_BATCH):
                part = alike[first : first + INFER_BATCH]
                batch = torch.stack([features[u.id] for u in part])  # (B, T, D)
                lengths = torch.full((len(part),), length, device=batch.device)
                yield from zip(part, self.predict(head, batch, lengths, part, data), strict=True)

    def table(self, found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
        """See `showing.table`."""
        return showing.table(found)

    def page(self, found: Mapping[str, Any]) -> Sequence[Any]:
        """See `showing.page`."""
        return showing.page(found)

    @override
    def evaluate(
        self, head: nn.Module, predictions: Mapping[str, Any], data: TaskData, split: str, folder: Path
    ) -> Evaluation:
        scored = [(u, float(predictions[u.id])) for u in data.splits[split]]
        real, spoofed = measure.real_and_spoofed(scored)
        if split != "test":
            self.dev_scored = scored
            rate, threshold = equal_error_rate([s for _, s in real], [s for _, s in spoofed])
            detector = _detection_head(head)
            detector.threshold.fill_(threshold)
            fitted = inference.calibrate([s for _, s in real], [s for _, s in spoofed])
            detector.calibration.copy_(torch.tensor([fitted.scale, fitted.offset]))
            logger.debug("EER on %s %.4f at %.3f", split, rate, threshold)
            return Evaluation({"eer": measure.eer(real, spoofed), "min_dcf": measure.detection_cost(real, spoofed)})
        if self.dev_scored:  # what calibration and fusion learn from; a finished run that is tested again heard no dev
            measure.write_scores(folder / "dev_scores.tsv", self.dev_scored)
        if self.config.labels == "corpus":
            own = data.extra["tested"][0].name
            if scored[0][0].labels["corpus"] != own:
                raise SpeechsslError(
                    f"None of the {len(scored)} utterances heard is of the test of '{own}': hear more."
                )
            write_tested(folder / "corpora.json", data.extra["tested"])
            tested = conditions.evaluate_test(scored, float(_detection_head(head).threshold), folder)
        else:
            measure.write_scores(folder / "scores.tsv", scored)
            tested = self._test(real, spoofed, float(_detection_head(head).threshold))
        sides = measure.headline(scored, unseen=self.config.labels != "corpus")
        calibration = Calibration(*_detection_head(head).calibration.tolist())
        costs = measure.calibrated_costs(*sides, calibration)
        breakdown = {**tested.breakdown, audit.BREAKDOWN: audit.as_metrics(data.extra["cues"])}
        if by_attack := measure.act_dcf_by("attack", *sides, calibration):
            breakdown["act dcf by attack"] = by_attack
        return replace(tested, metrics={**tested.metrics, **costs}, breakdown=breakdown)

    def _test(self, real: measure.Scored, spoofed: measure.Scored, threshold: float) -> Evaluation:
        unseen = [s for s in spoofed if not s[0].labels["seen"]]
        metrics = {
            "eer": measure.eer(real, unseen),
            "eer_all": measure.eer(real, spoofed),
            "min_dcf": measure.detection_cost(real, unseen),
            "min_dcf_all": measure.detection_cost(real, spoofed),
            **measure.errors_at(threshold, real, spoofed),
        }
        breakdown = {
            "eer by attack": measure.eer_by("attack", real, spoofed),
            "eer by family": measure.eer_by("family", real, spoofed),
            "false acceptance by attack": measure.acceptance_by("attack", spoofed, threshold, accepted=True),
            "false rejection by language": measure.acceptance_by("language", real, threshold, accepted=False),
        }
        return Evaluation(metrics, breakdown, {"scores": "scores.tsv"})


def _audited(data: TaskData, folder: Path) -> TaskData:
    """With what trivial cues alone would score; the findings are kept in a folder."""
    return replace(data, extra={**data.extra, "cues": audit.audited(data, folder)})


def focal_loss(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Cross entropy times (1 - p) ** gamma with the probability p of the label: (B, 2), (B,) int64 -> (B,).

    Paper: Lin et al. 2017, eq. 4, arXiv:1708.02002.
    """
    losses = F.cross_entropy(logits, labels, reduction="none")
    wrong = -torch.expm1(-losses)  # 1 - p; at 0 small powers have no slope
    return losses if gamma == 0 else wrong.clamp(min=torch.finfo(wrong.dtype).eps).pow(gamma) * losses


def _shortened(utterance: Utterance, limit: float | None) -> Utterance:
    if limit is None or (utterance.duration is not None and utterance.duration <= limit):
        return utterance
    return replace(utterance, duration=limit)


def _detection_head(head: nn.Module) -> Detector:
    if not isinstance(head, Detector):
        raise SpeechsslError(f"`head` must be a Detector, but is {type(head).__name__}.")
    return head


def _frames(part: Joined) -> tuple[Tensor, Tensor]:
    """All valid frames of a batch (N, D), and whether each is of a real utterance, (N,) int64."""
    features, lengths, utterances = part
    valid = ~lengths_to_padding_mask(lengths, features.size(1))  # (B, T)
    labels = torch.tensor([_is_real(u) for u in utterances], dtype=torch.long, device=features.device)
    return features[valid], labels[:, None].expand_as(valid)[valid]


def _is_real(utterance: Utterance) -> bool:
    return bool(utterance.labels["attack"] == BONA_FIDE)


TASK = DeepfakeDetection
