"""Speech recognition: characters by CTC, greedy decoding, word and character error rates.

B batch, T frames, D width, V classes.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from speechssl.augment.spec_augment import spec_augment
from speechssl.data.corpus import Corpus
from speechssl.decode.ctc import BLANK, greedy_decode
from speechssl.files import replacing
from speechssl.metric.transcription import character_errors, word_errors
from speechssl.result import Evaluation, MetricValue
from speechssl.task import Task, TaskData
from speechssl.types import LossOutput, Utterance

from .config import AsrConfig
from .data import Vocabulary, make_vocabulary, read_splits
from .head import RecurrentHead

logger = logging.getLogger(__name__)
EXAMPLES = 10  # transcripts shown with a result


class Asr(Task):
    """SUPERB's speech recognition, over any languages."""

    name = "asr"
    config: AsrConfig

    def __init__(self, config: AsrConfig) -> None:
        super().__init__(config)
        self.metric = config.metric

    @override
    def prepare(self, corpus: Corpus) -> TaskData:
        splits = read_splits(corpus, self.config)
        vocabulary = make_vocabulary(splits["train"])
        for split in ("dev", "test"):
            unseen = vocabulary.unseen([u.labels["text"] for u in splits[split]])
            if unseen:
                count = sum(unseen.values())
                logger.warning("asr %s: %d characters never occur in training: %s", split, count, "".join(unseen))
        return TaskData(splits=splits, extra={"vocabulary": vocabulary})

    @override
    def state(self, data: TaskData) -> Mapping[str, Any]:
        return {"characters": "".join(_vocabulary(data).characters)}

    @override
    def restore(self, state: Mapping[str, Any]) -> TaskData:
        return TaskData(splits={}, extra={"vocabulary": Vocabulary(tuple(state["characters"]))})

    @override
    def build_head(self, size: int, frame_rate: float, data: TaskData) -> nn.Module:
        return RecurrentHead(size, len(_vocabulary(data)), frame_rate=frame_rate, config=self.config)

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
        labels = [torch.tensor(_vocabulary(data).encode(u.labels["text"])) for u in utterances]
        sizes = torch.tensor([len(row) for row in labels])
        losses = F.ctc_loss(
            log_probs.transpose(0, 1),  # (T, B, V)
            torch.nn.utils.rnn.pad_sequence(labels, batch_first=True).to(log_probs.device),
            frames,
            sizes.to(log_probs.device),
            blank=BLANK,
            reduction="none",
            zero_infinity=True,
        )
        # As S3PRL (CTCLoss with reduction 'mean'): each utterance per character, then the mean over utterances.
        total = (losses / sizes.to(losses)).sum()
        too_short = sum(_needed(row) > n for row, n in zip(labels, frames.tolist(), strict=True))
        return LossOutput(total, torch.tensor(len(utterances)), {"too short for its text": torch.tensor(too_short)})

    @override
    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance], data: TaskData
    ) -> list[Any]:
        log_probs, frames = head(features, lengths)
        return [_vocabulary(data).decode(labels) for labels in greedy_decode(log_probs, frames)]

    @override
    def evaluate(
        self, head: nn.Module, predictions: Mapping[str, Any], data: TaskData, split: str, folder: Path
    ) -> Evaluation:
        utterances = data.splits[split]
        references = [str(u.labels["text"]) for u in utterances]
        hypotheses = [str(predictions[u.id]) for u in utterances]
        languages = [str(u.labels.get("language", "unknown")) for u in utterances]
        words, characters = word_errors(references, hypotheses), character_errors(references, hypotheses)
        unseen = sum(_vocabulary(data).unseen(references).values())
        total = sum(map(len, references))
        files: dict[str, str] = {}
        if split == "test":
            files["transcripts"] = _write(folder / "transcripts.tsv", utterances, references, hypotheses)
        return Evaluation(
            metrics={
                "wer": words.rate(),
                "cer": characters.rate(),
                "unseen characters": MetricValue(unseen / total, total, "characters"),
            },
            breakdown={"wer by language": words.rates_by(languages), "cer by language": characters.rates_by(languages)},
            files=files,
            examples=[
                {"title": u.id, "language": group, "reference": r, "hypothesis": h}
                for u, group, r, h in list(zip(utterances, languages, references, hypotheses, strict=True))[:EXAMPLES]
            ],
        )


def _vocabulary(data: TaskData) -> Vocabulary:
    vocabulary: Vocabulary = data.extra["vocabulary"]
    return vocabulary


def _needed(labels: Tensor) -> int:
    """Fewest frames that can spell the labels: a blank must stand between two equal ones."""
    return len(labels) + int((labels[1:] == labels[:-1]).sum())


def _write(path: Path, utterances: Sequence[Utterance], references: Sequence[str], hypotheses: Sequence[str]) -> str:
    rows = zip(utterances, references, hypotheses, strict=True)
    lines = ["utterance\treference\thypothesis", *(f"{u.id}\t{r}\t{h}" for u, r, h in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path.name


TASK = Asr
