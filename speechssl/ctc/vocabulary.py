"""The units that can be spelled: characters, words (phonemes) or pieces of words; class 0 is always the blank."""

import base64
import io
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from typing_extensions import override

from speechssl.errors import ConfigError

PieceModel = Literal["bpe", "unigram"]
WORD_BEGIN = "▁"  # what sentencepiece writes for a blank


class Vocabulary(ABC):
    """Turns texts into classes and back."""

    @abstractmethod
    def __len__(self) -> int:
        """Classes, the blank included."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Classes of the units of `text`; units that were never seen in training are left out."""

    @abstractmethod
    def decode(self, labels: Sequence[int]) -> str:
        """The text of classes other than the blank."""

    @abstractmethod
    def unseen(self, texts: Sequence[str]) -> Counter[str]:
        """How often each unit occurs that is not in the vocabulary."""

    @abstractmethod
    def state(self) -> Mapping[str, Any]:
        """As JSON, for `vocabulary_from_state`."""

    @abstractmethod
    def unit(self, label: int) -> str:
        """How language models of units write a class other than the blank: without white space."""


@dataclass(frozen=True)
class Characters(Vocabulary):
    """Class k is characters[k - 1]."""

    characters: tuple[str, ...]

    @override
    def __len__(self) -> int:
        return len(self.characters) + 1

    @override
    def encode(self, text: str) -> list[int]:
        return [self._classes[c] for c in text if c in self._classes]

    @override
    def decode(self, labels: Sequence[int]) -> str:
        """Blanks between words are single and never at an end."""
        return " ".join("".join(self.characters[k - 1] for k in labels).split())

    @override
    def unseen(self, texts: Sequence[str]) -> Counter[str]:
        return Counter(c for text in texts for c in text if c not in self._classes)

    @override
    def state(self) -> Mapping[str, Any]:
        return {"characters": "".join(self.characters)}

    @override
    def unit(self, label: int) -> str:
        return self.characters[label - 1].replace(" ", "|")

    @cached_property
    def _classes(self) -> Mapping[str, int]:
        return {c: k for k, c in enumerate(self.characters, 1)}


@dataclass(frozen=True)
class Words(Vocabulary):
    """Class k is words[k - 1], and texts are words with white space between them."""

    words: tuple[str, ...]

    @override
    def __len__(self) -> int:
        return len(self.words) + 1

    @override
    def encode(self, text: str) -> list[int]:
        return [self._classes[w] for w in text.split() if w in self._classes]

    @override
    def decode(self, labels: Sequence[int]) -> str:
        return " ".join(self.words[k - 1] for k in labels)

    @override
    def unseen(self, texts: Sequence[str]) -> Counter[str]:
        return Counter(w for text in texts for w in text.split() if w not in self._classes)

    @override
    def state(self) -> Mapping[str, Any]:
        return {"words": list(self.words)}

    @override
    def unit(self, label: int) -> str:
        return self.words[label - 1]

    @cached_property
    def _classes(self) -> Mapping[str, int]:
        return {w: k for k, w in enumerate(self.words, 1)}


@dataclass(frozen=True)
class Pieces(Vocabulary):
    """Class k is piece k of a sentencepiece model, whose piece 0 is what it does not know."""

    model: bytes
    """A serialised sentencepiece model."""

    @override
    def __len__(self) -> int:
        return int(self._processor.get_piece_size())

    @override
    def encode(self, text: str) -> list[int]:
        return [k for k in self._processor.encode(text) if k]

    @override
    def decode(self, labels: Sequence[int]) -> str:
        return str(self._processor.decode(list(labels)))

    @override
    def unseen(self, texts: Sequence[str]) -> Counter[str]:
        """Characters, since every one of the training texts is a piece."""
        known = {c for k in range(1, len(self)) for c in self._processor.id_to_piece(k)} | {" "}
        return Counter(c for text in texts for c in text if c not in known)

    @override
    def state(self) -> Mapping[str, Any]:
        return {"pieces": base64.b64encode(self.model).decode()}

    @override
    def unit(self, label: int) -> str:
        return str(self._processor.id_to_piece(label))

    @cached_property
    def _processor(self) -> Any:
        from sentencepiece import SentencePieceProcessor

        return SentencePieceProcessor(model_proto=self.model)


def find_characters(texts: Iterable[str]) -> Characters:
    """All characters of the texts, in code point order."""
    return Characters(tuple(sorted({c for text in texts for c in text})))


def find_words(texts: Iterable[str]) -> Words:
    """All words of the texts, sorted."""
    return Words(tuple(sorted({w for text in texts for w in text.split()})))


def train_pieces(texts: Sequence[str], *, size: int, model: PieceModel) -> Pieces:
    """Learns pieces from texts; the same texts in any order give the same pieces.

    Args:
        size: classes, the blank included.
        model: byte pair encoding, or sentencepiece's unigram language model.

    Raises:
        ConfigError: more pieces than the texts can give, or fewer than they have characters.

    Paper: Kudo and Richardson 2018, arXiv:1808.06226.
    """
    from sentencepiece import SentencePieceTrainer

    file = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(sorted(texts)),
            model_writer=file,
            vocab_size=size,
            model_type=model,
            character_coverage=1.0,
            normalization_rule_name="identity",  # texts are normalised already, and must come back as they are
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,
            max_sentence_length=1 << 20,  # bytes; beyond it texts would be dropped
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"`num_pieces` can't be {size} for these texts: {_reason(error)}") from error
    return Pieces(file.getvalue())


def vocabulary_from_state(state: Mapping[str, Any]) -> Vocabulary:
    """What `Vocabulary.state` was taken of."""
    if "characters" in state:
        return Characters(tuple(state["characters"]))
    if "words" in state:
        return Words(tuple(state["words"]))
    return Pieces(base64.b64decode(state["pieces"]))


def _reason(error: Exception) -> str:
    """The sentence at the end of sentencepiece's message, after the place in its code."""
    return " ".join(str(error).split("]")[-1].split()) or "sentencepiece can't learn them."
