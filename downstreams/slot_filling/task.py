"""Slot filling: characters and tags of slots by CTC, greedy decoding, F1 of slot types and error rates of values."""

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from speechssl.ctc.data import write_transcripts
from speechssl.ctc.task import CtcTask, examples, vocabulary_of
from speechssl.ctc.vocabulary import Vocabulary
from speechssl.data.corpus import Corpus, where_is
from speechssl.decode.ctc import greedy_decode
from speechssl.errors import ManifestError
from speechssl.metric.slots import (
    find_slots,
    remove_slots,
    remove_tags,
    slot_edit_f1,
    slot_type_f1,
    slot_value_cer,
    slot_value_wer,
)
from speechssl.metric.transcription import character_errors, word_errors
from speechssl.result import Evaluation, MetricValue
from speechssl.task import TaskData
from speechssl.types import Utterance

from .config import SlotConfig
from .vocabulary import BEGIN, END, TaggedCharacters, find_units


class SlotFilling(CtcTask):
    """SUPERB's slot filling."""

    name = "slot_filling"
    key = "slots"
    config: SlotConfig

    def __init__(self, config: SlotConfig) -> None:
        super().__init__(config)
        self.metric = config.metric
        self.higher_is_better = config.metric == "slot type f1"

    @override
    def read(self, corpus: Corpus) -> Mapping[str, Sequence[Utterance]]:
        splits = super().read(corpus)
        texts = (self.text_of(u) for utterances in splits.values() for u in utterances)
        names = {slot.name for text in texts for slot in find_slots(text)}
        for split, utterances in splits.items():
            for utterance in utterances:
                self._check_tags(corpus, split, utterance, names)
            if not any(find_slots(self.text_of(u)) for u in utterances):
                raise ManifestError(
                    f"The corpus {corpus.root} has no slot in '{split}': `slots` must be texts such as "
                    "'ADD B-artist NICK DRAKE E-artist'."
                )
        return splits

    @override
    def make_vocabulary(self, utterances: Sequence[Utterance]) -> Vocabulary:
        return find_units(self.text_of(u) for u in utterances)

    @override
    def restore(self, state: Mapping[str, Any]) -> TaskData:
        vocabulary = TaggedCharacters(tuple(state["characters"]), tuple(state["slots"]))
        return TaskData(splits={}, extra={"vocabulary": vocabulary})

    @override
    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance], data: TaskData
    ) -> list[Any]:
        """Classes of each utterance, none of them the blank."""
        return list(greedy_decode(*head(features, lengths)))

    @override
    def evaluate(
        self, head: nn.Module, predictions: Mapping[str, Any], data: TaskData, split: str, folder: Path
    ) -> Evaluation:
        utterances = data.splits[split]
        references = [self.text_of(u) for u in utterances]
        labels = [predictions[u.id] for u in utterances]
        hypotheses = [vocabulary_of(data).decode(row) for row in labels]
        # S3PRL drops blanks before it merges repeats (`downstream/ctc/expert.py`), and so spells no letter twice.
        merged = [vocabulary_of(data).decode([k for k, _ in groupby(row)]) for row in labels]
        said, heard = [remove_tags(r) for r in references], [remove_tags(h) for h in hypotheses]
        files: dict[str, str] = {}
        if split == "test":
            names = [u.id for u in utterances]
            files["transcripts"] = write_transcripts(folder / "transcripts.tsv", names, references, hypotheses)
        return Evaluation(
            metrics={
                **_slot_metrics(references, hypotheses),
                "slot value cer as S3PRL": slot_value_cer(references, merged),
                "wer": word_errors(said, heard).rate(),
                "cer": character_errors(said, heard).rate(),
                "unseen units": self.unseen_units(data, split, "units", count=_count_units),
            },
            files=files,
            examples=examples(utterances, references, hypotheses),
        )

    @override
    def answer(self, head: nn.Module, features: Tensor, utterance: Utterance, data: TaskData) -> Any:
        """The words, and the slots in order."""
        tagged = vocabulary_of(data).decode(super().answer(head, features, utterance, data))
        slots = [{"slot": slot.name, "value": remove_tags(slot.value)} for slot in find_slots(tagged)]
        return {"text": " ".join(remove_tags(tagged).split()), "slots": slots}

    def _check_tags(self, corpus: Corpus, split: str, utterance: Utterance, names: Collection[str]) -> None:
        """A tag inside of a value, or without its other end, is a mistake of the corpus.

        Args:
            names: of all slots of the corpus.
        """
        text = self.text_of(utterance)
        slots = find_slots(text)
        tags = {mark + slot.name for slot in slots for mark in (BEGIN, END)}
        inside = [word for slot in slots for word in slot.value.split() if word in tags]
        outside = [w for w in remove_slots(text).split() if w[:2] in (BEGIN, END) and w[2:] in names]
        if inside or outside:
            found = f"'{inside[0]}' inside of a slot" if inside else f"'{outside[0]}' without its other end"
            where = where_is(corpus.root, split, utterance.id)
            raise ManifestError(f"{where} has the tag {found} in '{utterance.id}': mend its `slots`.")


def _count_units(text: str) -> int:
    return sum(1 for _ in TaggedCharacters((), ()).split(text))


def _slot_metrics(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, MetricValue]:
    return {
        "slot type f1": slot_type_f1(references, hypotheses),
        "slot value cer": slot_value_cer(references, hypotheses),
        "slot value wer": slot_value_wer(references, hypotheses),
        "slot edit f1 full": slot_edit_f1(references, hypotheses, count_extra=True),
        "slot edit f1 part": slot_edit_f1(references, hypotheses, count_extra=False),
    }


TASK = SlotFilling
