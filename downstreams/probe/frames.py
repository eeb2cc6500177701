"""The probe of frames: each is predicted by itself, and frames in no labelled span are not looked at.

It has the heads of the other probes, which take a frame for an utterance of one frame.
B batch, T frames of an utterance, D width, N frames of a batch, F labelled frames of a split, C classes.
Paper: van den Oord et al. 2018, sec. 3.1 (phones told from frames, labelled by forced alignment), arXiv:1807.03748.
"""

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from speechssl.answers import moved
from speechssl.classification.data import label_of
from speechssl.data.corpus import Corpus
from speechssl.data.seeds import derive_seed
from speechssl.data.spans import Places, Span, Spans, label_frames, read_spans
from speechssl.errors import ManifestError
from speechssl.lengths import lengths_to_padding_mask
from speechssl.task import TaskData
from speechssl.types import LossOutput, Utterance

from .data import Splits, check_groups, read_everything
from .head import TimedHead, timed
from .parts import PartProbe

logger = logging.getLogger(__name__)
Values = NDArray[np.float64]
Read = Mapping[str, Sequence[Span]]
"""Utterance id -> its labelled spans, whose values are text."""


class FrameProbe(PartProbe):
    """What is the same for classes and for numbers."""

    @abstractmethod
    def encode(self, splits: Splits, spans: Read, root: Path) -> TaskData:
        """The data of chosen utterances; `spans` of it, utterance id -> `Spans`, have numbers for values."""

    @abstractmethod
    def loss_of_frames(self, scores: Tensor, values: Values, data: TaskData) -> LossOutput:
        """The loss of the head's (N, C) scores of N frames, one or more, whose labels are `values` (N,)."""

    @abstractmethod
    def decide(self, scores: Tensor, data: TaskData) -> NDArray[Any]:
        """What is predicted of each frame, from (N, C) scores; N rows."""

    @abstractmethod
    def describe(self, found: NDArray[Any], frame_rate: float, data: TaskData) -> list[dict[str, Any]]:
        """What was predicted of a user's file, as JSON: stretches with 'start' and 'end', seconds."""

    @override
    def prepare(self, corpus: Corpus) -> TaskData:
        everything = read_everything(corpus, self.config)
        spans = {u.id: self._labelled(u, corpus.root) for part in everything.values() for u in part}
        splits = self._choose(everything, spans, corpus.root)
        check_groups(splits, self.config, corpus.root)
        return self.encode(splits, spans, corpus.root)

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
        own = timed(head)
        found = [_labels(u, data, n, own) for u, n in zip(utterances, lengths.tolist(), strict=True)]
        rows = np.concatenate([row * features.size(1) + places for row, (places, _) in enumerate(found)])
        if not len(rows):  # spans so short that no centre lies in one
            nothing = torch.stack([parameter.sum() for parameter in own.parameters()]).sum() * 0.0
            return LossOutput(nothing, torch.tensor(0))
        chosen = features.flatten(0, 1)[torch.from_numpy(rows).to(features.device)]  # (N, D)
        return self.loss_of_frames(_scores(own, chosen), np.concatenate([values for _, values in found]), data)

    @override
    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance], data: TaskData
    ) -> list[Any]:
        """One array per utterance, with a row for each frame."""
        valid = ~lengths_to_padding_mask(lengths, features.size(1))  # (B, T)
        found = self.decide(_scores(timed(head), features[valid]), data)
        return np.split(found, np.cumsum(lengths.tolist())[:-1])

    @override
    def answer(self, head: nn.Module, features: Tensor, utterance: Utterance, data: TaskData) -> Any:
        """What `describe` makes of it."""
        found = super().answer(head, features, utterance, data)
        return moved(self.describe(found, timed(head).frame_rate, data), utterance)

    def labelled(
        self, head: nn.Module, predictions: Mapping[str, NDArray[Any]], data: TaskData, split: str
    ) -> tuple[list[Places], list[Values], list[NDArray[Any]]]:
        """The labelled frames of each utterance of a split, their labels, and what was predicted of them.

        Raises:
            ManifestError: there is none.
        """
        own, utterances = timed(head), data.splits[split]
        found = [_labels(u, data, len(predictions[u.id]), own) for u in utterances]
        if not any(len(places) for places, _ in found):
            raise ManifestError(
                f"No frame of '{split}' has its centre in a span with '{self.config.fields[0]}': the spans are too "
                f"short for {own.frame_rate:g} frames per second; use `level=segment`."
            )
        said = [predictions[u.id][places] for u, (places, _) in zip(utterances, found, strict=True)]
        return [places for places, _ in found], [values for _, values in found], said

    def units(self, counts: Sequence[int], utterances: Sequence[Utterance]) -> list[int]:
        """What is resampled for intervals, for each frame: its utterance, or the group of that."""
        group = self.config.group
        names = [u.id if group is None else label_of(u, group) for u in utterances]
        codes: list[int] = np.repeat(np.unique(names, return_inverse=True)[1], counts).tolist()
        return codes

    def _labelled(self, utterance: Utterance, root: Path) -> list[Span]:
        """The spans that have a label; none in a language that is not asked for."""
        languages = self.config.languages
        if languages is not None and utterance.labels.get("language") not in languages:
            return []
        found = read_spans(utterance, self.config.fields[0], root)
        texts = ["" if span.value is None else str(span.value).strip() for span in found]
        return [span._replace(value=text) for span, text in zip(found, texts, strict=True) if text]

    def _choose(self, everything: Splits, spans: Read, root: Path) -> Splits:
        """The utterances with a labelled span, as many as the config asks for."""
        splits: Splits = {}
        for split, utterances in everything.items():
            kept = [u for u in utterances if spans[u.id]]
            if not kept:
                raise ManifestError(
                    f"The corpus {root} has no utterance in '{split}' with spans of '{self.config.fields[0]}': its "
                    f"labels are {', '.join(sorted({repr(key) for u in utterances for key in u.labels}))}."
                )
            limit = self.config.max_train_utterances if split == "train" else self.config.max_eval_utterances
            chosen = set(sorted((u.id for u in kept), key=lambda i: derive_seed("frame subset", i))[:limit])
            splits[split] = [u for u in kept if u.id in chosen]
            seconds = sum(span.end - span.begin for name in chosen for span in spans[name])
            message = "probe of frames %s: %d utterances of %d (%d without a labelled span), %.1f s in spans"
            logger.info(message, split, len(chosen), len(utterances), len(utterances) - len(kept), seconds)
        return splits


def time_of(first: int, end: int, frame_rate: float) -> dict[str, float]:
    """From the beginning of a frame to that of another, seconds."""
    return {"start": round(first / frame_rate, 6), "end": round(end / frame_rate, 6)}


def _labels(utterance: Utterance, data: TaskData, frames: int, head: TimedHead) -> tuple[Places, Values]:
    spans: Mapping[str, Spans] = data.extra["spans"]
    return label_frames(spans[utterance.id], frames=frames, frame_rate=head.frame_rate)


def _scores(head: TimedHead, frames: Tensor) -> Tensor:
    """(N, D) -> (N, C) float32."""
    scores: Tensor = head.head(frames, torch.ones(len(frames), device=frames.device))
    return scores.float()
