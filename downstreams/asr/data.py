"""Utterances, characters and the subset that a config asks for."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from speechssl.data.batching import derive_seed
from speechssl.data.corpus import Corpus
from speechssl.errors import ManifestError
from speechssl.types import Utterance

from .config import AsrConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Vocabulary:
    """The characters that can be recognised; class 0 is the blank, class k is characters[k - 1]."""

    characters: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.characters) + 1

    def encode(self, text: str) -> list[int]:
        """Classes of the characters of `text`; characters that were never seen in training are left out."""
        index = {c: k + 1 for k, c in enumerate(self.characters)}
        return [index[c] for c in text if c in index]

    def decode(self, labels: Sequence[int]) -> str:
        """The text of classes other than the blank; blanks between words are single and never at an end."""
        return " ".join("".join(self.characters[k - 1] for k in labels).split())

    def unseen(self, texts: Sequence[str]) -> Counter[str]:
        """How often each character that is not in the vocabulary occurs."""
        return Counter(c for text in texts for c in text if c not in set(self.characters))


def make_vocabulary(utterances: Sequence[Utterance]) -> Vocabulary:
    """All characters of the training texts, in code point order."""
    return Vocabulary(tuple(sorted({c for u in utterances for c in u.labels["text"]})))


def read_splits(corpus: Corpus, config: AsrConfig) -> Mapping[str, list[Utterance]]:
    """The transcribed utterances of 'train', 'dev' and 'test' that the config asks for.

    Raises:
        ManifestError: a language that the corpus does not have, or a split without transcribed speech.
    """
    splits: dict[str, list[Utterance]] = {}
    for split in ("train", "dev", "test"):
        everything = corpus.utterances(split)
        transcribed = [u for u in everything if str(u.labels.get("text") or "").strip()]
        _check_languages(corpus, config, split, transcribed)
        kept = [u for u in transcribed if config.languages is None or u.labels.get("language") in config.languages]
        limit = config.max_train_utterances if split == "train" else config.max_eval_utterances
        if split == "train" and config.max_duration is not None:
            longest = config.max_duration
            kept = [u for u in kept if u.duration is None or u.duration <= longest]
        chosen = _subset(kept, limit)
        logger.info(
            "asr %s: %d utterances of %d (%d without text, %d not asked for)",
            split,
            len(chosen),
            len(everything),
            len(everything) - len(transcribed),
            len(transcribed) - len(chosen),
        )
        splits[split] = chosen
    return splits


def _check_languages(corpus: Corpus, config: AsrConfig, split: str, utterances: Sequence[Utterance]) -> None:
    found = Counter(str(u.labels.get("language")) for u in utterances)
    if not utterances:
        raise ManifestError(f"The corpus {corpus.root} has no transcribed utterance in '{split}': ASR needs texts.")
    for language in config.languages or ():
        if language not in found:
            raise ManifestError(
                f"The corpus {corpus.root} has no transcribed '{language}' in '{split}': `languages` can be "
                f"{', '.join(sorted(found))}."
            )


def _subset(utterances: Sequence[Utterance], limit: int | None) -> list[Utterance]:
    """At most `limit` utterances per language: the same ones on every machine, in the order of the corpus."""
    if limit is None:
        return list(utterances)
    chosen: set[str] = set()
    for language in {u.labels.get("language") for u in utterances}:
        ids = [u.id for u in utterances if u.labels.get("language") == language]
        chosen.update(sorted(ids, key=lambda name: derive_seed("asr subset", name))[:limit])
    return [u for u in utterances if u.id in chosen]
