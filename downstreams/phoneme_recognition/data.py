"""The phonemes of each utterance, by a lexicon or by eSpeak NG."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from speechssl.data.corpus import Corpus, where_is
from speechssl.data.espeak import open_espeak
from speechssl.decode.lexicon import read_rows
from speechssl.errors import ConfigError, ManifestError, SpeechsslError
from speechssl.types import Utterance

logger = logging.getLogger(__name__)
NAMED = 5  # unknown words that a message names
LOOKED_UP = "add them to a file in `lexicon`"
ALOUD = "eSpeak NG reads the texts, so leave such languages out of `languages`"


class Unknown(Exception):
    """An utterance whose phonemes can't be known; `what` is the word, or the language."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


@dataclass(frozen=True)
class Lexicon:
    """Words and their first pronunciations."""

    words: Mapping[str, str]
    """Word -> phonemes with blanks between."""
    folded: Mapping[str, str]
    """The same by words in lower case, of words that differ in case only the first."""

    def pronounce(self, utterance: Utterance) -> str:
        """The phonemes of the words of `text`; a word that is not there as it is written is looked up in any case.

        Raises:
            Unknown: a word that is not there.
        """
        return " ".join(self._word(word) for word in str(utterance.labels["text"]).split())

    def _word(self, word: str) -> str:
        phones = self.words.get(word) or self.folded.get(word.casefold())
        if phones is None:
            raise Unknown(word)
        return phones


def read_lexicon(paths: Sequence[str], *, inventory: Collection[str] | None) -> Lexicon:
    """Reads files of lines 'WORD  PH ON EM ES'; the first pronunciation of a word counts, as in S3PRL.

    Args:
        inventory: the phonemes that there may be; None = any.

    Raises:
        ConfigError: no file is named.
        ManifestError: a missing file, one that is not UTF-8 or holds no word, a word without phonemes, or with one that
            is not in the inventory.
    """
    if not paths:
        raise ConfigError(
            "`lexicon` names no file: give one with lines 'WORD  PH ON EM ES', such as LibriSpeech's "
            "librispeech-lexicon.txt, or set `phones`."
        )
    words: dict[str, str] = {}
    folded: dict[str, str] = {}
    for path in paths:
        for where, word, phones in read_rows(Path(path)):
            if not phones:
                raise ManifestError(f"{where} has the word '{word}' without phonemes: add them, or drop the line.")
            strange = [phone for phone in phones if inventory is not None and phone not in inventory]
            if strange:
                raise ManifestError(
                    f"{where} has the phoneme '{strange[0]}' in '{word}', which is not in `inventory`: mend the line, "
                    "or set `inventory=null` for the phonemes of the training utterances."
                )
            words.setdefault(word, " ".join(phones))
            folded.setdefault(word.casefold(), " ".join(phones))
    if not words:
        raise ManifestError(f"The lexicon {', '.join(paths)} holds no word: check the path.")
    return Lexicon(words, folded)


def read_aloud(utterance: Utterance) -> str:
    """The phonemes of `text` by the rules that eSpeak NG has for its `language`.

    Raises:
        Unknown: eSpeak NG has no such language, or says nothing.
    """
    language = str(utterance.labels.get("language", "unknown"))
    try:
        phones = open_espeak().phonemes(str(utterance.labels["text"]), language.replace("_", "-"))
    except SpeechsslError as error:
        if "voice" not in str(error):
            raise
        raise Unknown(language) from error
    if not phones:
        raise Unknown(language)
    return " ".join(phones)


def add_phones(
    corpus: Corpus,
    splits: Mapping[str, Sequence[Utterance]],
    pronounce: Callable[[Utterance], str],
    *,
    leave_out_unknown: bool,
    remedy: str,
) -> dict[str, list[Utterance]]:
    """The utterances with their phonemes as the label 'phones'.

    Args:
        remedy: what can be done about utterances whose phonemes are not known.

    Raises:
        ManifestError: what `pronounce` does not know, unless those utterances are left out; or none is left.
    """
    found: dict[str, list[Utterance]] = {}
    for split, utterances in splits.items():
        known: list[Utterance] = []
        unknown: Counter[str] = Counter()
        first = ""
        for utterance in utterances:
            try:
                phones = pronounce(utterance)
            except Unknown as error:
                unknown[error.what] += 1
                first = first or utterance.id
            else:
                known.append(replace(utterance, labels={**utterance.labels, "phones": phones}))
        if unknown:
            names = ", ".join(f"'{what}'" for what, _ in unknown.most_common(NAMED))
            where = where_is(corpus.root, split, first)
            if not leave_out_unknown or not known:
                raise ManifestError(
                    f"{where} is the first of {unknown.total()} utterances in '{split}' whose phonemes are not known, "
                    f"for {names}: {remedy}{'' if leave_out_unknown else ', or set `leave_out_unknown=true`'}."
                )
            message = "phonemes %s: %d utterances are left out for %s; the first is %s"
            logger.warning(message, split, unknown.total(), names, where.removesuffix(","))
        found[split] = known
    return found


def check_inventory(corpus: Corpus, splits: Mapping[str, Sequence[Utterance]], inventory: Collection[str]) -> None:
    """Sees that all phonemes are known.

    Raises:
        ManifestError: one is not; the message says where.
    """
    known = frozenset(inventory)
    for split, utterances in splits.items():
        for utterance in utterances:
            strange = [phone for phone in str(utterance.labels["phones"]).split() if phone not in known]
            if strange:
                raise ManifestError(
                    f"{where_is(corpus.root, split, utterance.id)} has the phoneme '{strange[0]}' in '{utterance.id}', "
                    "which is not in `inventory`: mend it, or set `inventory=null` for the phonemes of the training "
                    "utterances."
                )
