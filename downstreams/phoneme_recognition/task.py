"""Phoneme recognition: phonemes by CTC, greedy decoding, phoneme error rate."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import override

from speechssl.ctc.data import read_splits, write_transcripts
from speechssl.ctc.task import CtcTask, examples, language_of
from speechssl.ctc.vocabulary import Vocabulary, Words, find_words
from speechssl.data.corpus import Corpus
from speechssl.metric.transcription import word_errors
from speechssl.result import Evaluation
from speechssl.task import TaskData
from speechssl.types import Utterance

from .config import PhonemeConfig
from .data import ALOUD, LOOKED_UP, add_phones, check_inventory, read_aloud, read_lexicon


class PhonemeRecognition(CtcTask):
    """SUPERB's phoneme recognition."""

    name = "phoneme_recognition"
    metric = "per"
    key = "phones"
    config: PhonemeConfig

    @override
    def read(self, corpus: Corpus) -> Mapping[str, Sequence[Utterance]]:
        config = self.config
        if config.phones == "labels":
            splits = read_splits(corpus, config, task=self.name, key="phones")
        else:
            pronounce, remedy = read_aloud, ALOUD
            if config.phones == "lexicon":
                pronounce, remedy = read_lexicon(config.lexicon, inventory=config.inventory).pronounce, LOOKED_UP
            spoken = read_splits(corpus, config, task=self.name)
            leave_out = config.leave_out_unknown
            splits = add_phones(corpus, spoken, pronounce, leave_out_unknown=leave_out, remedy=remedy)
        if config.inventory is not None:
            check_inventory(corpus, splits, config.inventory)
        return splits

    @override
    def make_vocabulary(self, utterances: Sequence[Utterance]) -> Vocabulary:
        inventory = self.config.inventory
        if inventory is None:
            return find_words(self.text_of(u) for u in utterances)
        return Words(tuple(inventory))

    @override
    def evaluate(
        self, head: nn.Module, predictions: Mapping[str, Any], data: TaskData, split: str, folder: Path
    ) -> Evaluation:
        utterances = data.splits[split]
        references = [self.text_of(u) for u in utterances]
        hypotheses = [str(predictions[u.id]) for u in utterances]
        errors = word_errors(references, hypotheses)
        files: dict[str, str] = {}
        if split == "test":
            names = [u.id for u in utterances]
            files["transcripts"] = write_transcripts(folder / "transcripts.tsv", names, references, hypotheses)
        return Evaluation(
            metrics={
                "per": errors.rate(),
                "per as S3PRL": word_errors(references, [merge_repeats(h) for h in hypotheses]).rate(),
                "unseen phonemes": self.unseen_units(data, split, "phonemes", count=lambda text: len(text.split())),
            },
            breakdown={"per by language": errors.rates_by([language_of(u) for u in utterances])},
            files=files,
            examples=examples(utterances, references, hypotheses),
        )


def merge_repeats(phones: str) -> str:
    """Equal neighbours as one.

    S3PRL drops blanks before it merges repeats (`downstream/ctc/expert.py`), and so loses the second of two equal
    phonemes in hypotheses, though not in references. Published scores of SUPERB are made that way.
    """
    return " ".join(phone for phone, _ in groupby(phones.split()))


TASK = PhonemeRecognition
