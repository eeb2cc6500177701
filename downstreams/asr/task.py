"""Speech recognition: characters by CTC, greedy decoding, word and character error rates.

B batch, T frames, D width, V classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import override

from speechssl.ctc.data import write_transcripts
from speechssl.ctc.task import CtcTask, examples, language_of
from speechssl.ctc.vocabulary import Vocabulary, find_characters
from speechssl.metric.transcription import character_errors, word_errors
from speechssl.result import Evaluation
from speechssl.task import TaskData
from speechssl.types import Utterance

from .config import AsrConfig


class Asr(CtcTask):
    """SUPERB's speech recognition, over any languages."""

    name = "asr"
    config: AsrConfig

    def __init__(self, config: AsrConfig) -> None:
        super().__init__(config)
        self.metric = config.metric

    @override
    def make_vocabulary(self, utterances: Sequence[Utterance]) -> Vocabulary:
        return find_characters(self.text_of(u) for u in utterances)

    @override
    def evaluate(
        self, head: nn.Module, predictions: Mapping[str, Any], data: TaskData, split: str, folder: Path
    ) -> Evaluation:
        utterances = data.splits[split]
        references = [self.text_of(u) for u in utterances]
        hypotheses = [str(predictions[u.id]) for u in utterances]
        languages = [language_of(u) for u in utterances]
        words, characters = word_errors(references, hypotheses), character_errors(references, hypotheses)
        files: dict[str, str] = {}
        if split == "test":
            names = [u.id for u in utterances]
            files["transcripts"] = write_transcripts(folder / "transcripts.tsv", names, references, hypotheses)
        return Evaluation(
            metrics={
                "wer": words.rate(),
                "cer": characters.rate(),
                "unseen characters": self.unseen_units(data, split, "characters"),
            },
            breakdown={"wer by language": words.rates_by(languages), "cer by language": characters.rates_by(languages)},
            files=files,
            examples=examples(utterances, references, hypotheses),
        )


TASK = Asr
