"""Speech recognition: characters or pieces of words by CTC; word and character error rates.

Every checkpoint is measured as decoded greedily. With `decode.method=beam` the best one is also measured with a beam
search, on test alone and once, whose weights are the config's or those of the fewest errors on dev.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from speechssl.answers import answer_each
from speechssl.config import from_dict
from speechssl.ctc.data import write_transcripts
from speechssl.ctc.task import CtcTask, examples, language_of, vocabulary_of
from speechssl.ctc.vocabulary import Vocabulary, find_characters, train_pieces
from speechssl.data.corpus import Corpus
from speechssl.decode.beam import DecodeConfig
from speechssl.decode.ctc import greedy_decode
from speechssl.errors import SpeechsslError
from speechssl.metric.transcription import character_errors, word_errors
from speechssl.result import Evaluation
from speechssl.task import TaskData
from speechssl.types import Utterance

from .config import AsrConfig
from .decoding import (
    Heard,
    Weights,
    check_decoding,
    choose_weights,
    make_decoder,
    resolved,
    save_log_probs,
    search,
)


class Asr(CtcTask):
    """SUPERB's speech recognition, over any languages."""

    name = "asr"
    config: AsrConfig

    def __init__(self, config: AsrConfig) -> None:
        super().__init__(config)
        self.metric = config.metric
        self._dev: dict[str, Heard] = {}
        self._weights = Weights(config.decode.lm_weight, config.decode.word_score)

    @override
    def prepare(self, corpus: Corpus) -> TaskData:
        check_decoding(self.config.decode)
        return super().prepare(corpus)

    @override
    def make_vocabulary(self, utterances: Sequence[Utterance]) -> Vocabulary:
        texts = [self.text_of(u) for u in utterances]
        if self.config.units == "pieces":
            return train_pieces(texts, size=self.config.num_pieces, model=self.config.piece_model)
        return find_characters(texts)

    @override
    def state(self, data: TaskData) -> Mapping[str, Any]:
        if self.config.decode.method == "greedy":
            return super().state(data)
        found = {"config": asdict(resolved(self.config.decode)), "weights": asdict(self._weights)}
        return {**super().state(data), "decode": found}

    @override
    def restore(self, state: Mapping[str, Any]) -> TaskData:
        data = super().restore(state)
        found = state.get("decode")
        if found is None:
            return data
        config = from_dict(DecodeConfig(), found["config"], origin="task.json")
        return TaskData({}, {**data.extra, "decode": config, "weights": Weights(**found["weights"])})

    @override
    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance], data: TaskData
    ) -> list[Any]:
        """Texts; `Heard` where log-probabilities are needed later."""
        decode = self.config.decode
        if decode.method == "greedy" and not decode.save_log_probs:
            return super().predict(head, features, lengths, utterances, data)
        log_probs, frames = head(features, lengths)
        texts = [vocabulary_of(data).decode(labels) for labels in greedy_decode(log_probs, frames)]
        rows = zip(texts, log_probs.cpu(), frames.tolist(), strict=True)
        return [Heard(text, row[:length].clone()) for text, row, length in rows]

    @override
    def evaluate(
        self, head: nn.Module, predictions: Mapping[str, Any], data: TaskData, split: str, folder: Path
    ) -> Evaluation:
        utterances = data.splits[split]
        heard = {u.id: p for u in utterances if isinstance(p := predictions[u.id], Heard)}
        if split == "dev":
            self._dev = heard
        hypotheses = [p.text if isinstance(p, Heard) else str(p) for p in (predictions[u.id] for u in utterances)]
        greedy = self._measure(data, split, hypotheses, folder)
        if split == "dev" or not heard:
            return greedy
        files = dict(greedy.files)
        if self.config.decode.save_log_probs:
            for part, content in (("dev", self._dev), (split, heard)):
                path = folder / f"log_probs_{part}.safetensors"
                files[f"log-probabilities of {part}"] = save_log_probs(path, content, vocabulary_of(data))
        if self.config.decode.method == "greedy":
            return Evaluation(greedy.metrics, greedy.breakdown, files, greedy.examples)
        return self._with_beam(greedy, data, heard, folder, files)

    @override
    def infer(
        self,
        head: nn.Module,
        features: Mapping[str, Tensor],
        utterances: Sequence[Utterance],
        data: TaskData,
        folder: Path,
    ) -> Any:
        """Texts."""
        decoder = make_decoder(vocabulary_of(data), data.extra["decode"]) if "decode" in data.extra else None

        def spell(utterance: Utterance) -> str:
            one = features[utterance.id]
            (said,) = self.predict(head, one[None], torch.tensor([one.size(0)]), [utterance], data)
            if decoder is not None:
                return search(decoder, said.log_probs, data.extra["weights"])
            return str(said.text if isinstance(said, Heard) else said)

        return answer_each(utterances, spell)

    def _measure(self, data: TaskData, split: str, hypotheses: Sequence[str], folder: Path) -> Evaluation:
        utterances = data.splits[split]
        references = [self.text_of(u) for u in utterances]
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

    def _with_beam(
        self, greedy: Evaluation, data: TaskData, heard: Mapping[str, Heard], folder: Path, files: dict[str, str]
    ) -> Evaluation:
        """Adds what a beam search finds on test."""
        utterances = data.splits["test"]
        references = [self.text_of(u) for u in utterances]
        decoder = make_decoder(vocabulary_of(data), self.config.decode)
        breakdown = dict(greedy.breakdown)
        if self.config.decode.tune:
            dev = data.splits["dev"]
            if not self._dev:
                raise SpeechsslError("`decode.tune` chooses on dev, so dev must be measured before test.")
            said = {u.id: self.text_of(u) for u in dev}
            self._weights, table = choose_weights(decoder, self._dev, said, metric=self.config.metric)
            breakdown[f"{self.config.metric} on dev by weights"] = table
        hypotheses = [search(decoder, heard[u.id].log_probs, self._weights) for u in utterances]
        names = [u.id for u in utterances]
        files["transcripts by beam"] = write_transcripts(folder / "transcripts_beam.tsv", names, references, hypotheses)
        words, characters = word_errors(references, hypotheses), character_errors(references, hypotheses)
        breakdown["wer of beam by language"] = words.rates_by([language_of(u) for u in utterances])
        metrics = {**greedy.metrics, "wer of beam": words.rate(), "cer of beam": characters.rate()}
        return Evaluation(metrics, breakdown, files, examples(utterances, references, hypotheses))


TASK = Asr
