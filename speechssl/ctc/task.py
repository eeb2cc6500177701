"""What every transcription does: a frame-wise head, the loss of CTC per unit, and greedy decoding.

B batch, T frames, D width, V classes.
"""

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from speechssl.augment.spec_augment import spec_augment
from speechssl.ctc.config import CtcConfig
from speechssl.ctc.data import read_splits, transcript_of
from speechssl.ctc.loss import mean_ctc_loss
from speechssl.ctc.vocabulary import Vocabulary, vocabulary_from_state
from speechssl.data.corpus import Corpus, where_is
from speechssl.decode.ctc import greedy_decode
from speechssl.head.recurrent import RecurrentHead
from speechssl.result import MetricValue
from speechssl.task import Task, TaskData
from speechssl.types import LossOutput, Utterance

logger = logging.getLogger(__name__)
EXAMPLES = 10  # transcripts shown with a result


class CtcTask(Task):
    """A task that spells utterances; folders say which texts, and how they are measured."""

    config: CtcConfig
    key = "text"
    """The label that is the transcript."""

    @abstractmethod
    def make_vocabulary(self, utterances: Sequence[Utterance]) -> Vocabulary:
        """The units of the training texts."""

    def read(self, corpus: Corpus) -> Mapping[str, Sequence[Utterance]]:
        """The transcribed utterances of 'train', 'dev' and 'test'."""
        return read_splits(corpus, self.config, task=self.name, key=self.key)

    def text_of(self, utterance: Utterance) -> str:
        """The transcript."""
        return transcript_of(utterance, self.key)

    @override
    def prepare(self, corpus: Corpus) -> TaskData:
        splits = self.read(corpus)
        vocabulary = self.make_vocabulary(splits["train"])
        for split in ("dev", "test"):
            unseen = vocabulary.unseen([self.text_of(u) for u in splits[split]])
            if unseen:
                first = next(u.id for u in splits[split] if vocabulary.unseen([self.text_of(u)]))
                message = "%s has the first of %d units in '%s' that never occur in training, and are errors: %s"
                where = where_is(corpus.root, split, first)
                logger.warning(message, where, unseen.total(), split, " ".join(unseen))
        return TaskData(splits=splits, extra={"vocabulary": vocabulary})

    @override
    def state(self, data: TaskData) -> Mapping[str, Any]:
        return vocabulary_of(data).state()

    @override
    def restore(self, state: Mapping[str, Any]) -> TaskData:
        return TaskData(splits={}, extra={"vocabulary": vocabulary_from_state(state)})

    @override
    def build_head(self, size: int, frame_rate: float, data: TaskData) -> nn.Module:
        return RecurrentHead(size, len(vocabulary_of(data)), frame_rate=frame_rate, config=self.config)

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
        if self.config.augment is not None:
            rate = float(head.frame_rate)  # type: ignore[arg-type]  # a plain float on RecurrentHead
            features = spec_augment(features, lengths, frame_rate=rate, config=self.config.augment, generator=generator)
        log_probs, frames = head(features, lengths)
        vocabulary = vocabulary_of(data)
        return mean_ctc_loss(log_probs, frames, [vocabulary.encode(self.text_of(u)) for u in utterances])

    @override
    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance], data: TaskData
    ) -> list[Any]:
        log_probs, frames = head(features, lengths)
        return [vocabulary_of(data).decode(labels) for labels in greedy_decode(log_probs, frames)]

    def unseen_units(self, data: TaskData, split: str, unit: str, *, count: Callable[[str], int] = len) -> MetricValue:
        """The part of the references that no hypothesis can hold, since training lacks it.

        Args:
            unit: what `count` counts in a reference, such as 'characters'.
        """
        references = [self.text_of(u) for u in data.splits[split]]
        total = sum(map(count, references))
        return MetricValue(sum(vocabulary_of(data).unseen(references).values()) / total, total, unit)


def vocabulary_of(data: TaskData) -> Vocabulary:
    """What `CtcTask` keeps with its data."""
    vocabulary: Vocabulary = data.extra["vocabulary"]
    return vocabulary


def examples(
    utterances: Sequence[Utterance], references: Sequence[str], hypotheses: Sequence[str]
) -> list[dict[str, str]]:
    """The first transcripts, for people to look at."""
    rows = list(zip(utterances, references, hypotheses, strict=True))[:EXAMPLES]
    return [
        {"title": u.id, "language": language_of(u), "reference": reference, "hypothesis": hypothesis}
        for u, reference, hypothesis in rows
    ]


def language_of(utterance: Utterance) -> str:
    """'unknown' where it is."""
    return str(utterance.labels.get("language", "unknown"))
