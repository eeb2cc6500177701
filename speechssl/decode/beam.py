"""Beam search of CTC with an n-gram language model and a lexicon, by flashlight-text and the KenLM inside of it.

Conventions: log-probabilities are (T, V) float32 natural logarithms, class 0 the blank; scores of the language model
are logarithms of base 10, as KenLM's, so that `lm_weight` means what it means in fairseq and S3PRL.

Two searches:

* of tokens: over all token sequences, with a model of tokens or none.
* of words: over sequences of the lexicon's words, with a model of words or none. Where a token stands between words,
  every word ends with it; the last one does so in a frame that is added. Where none does (pieces of words), the last
  piece of a word takes one frame, as flashlight has it.

Without a model the probabilities of a hypothesis's alignments are summed; with one the best counts, as in S3PRL.

Reference: flashlight-text 0.0.7, `LexiconDecoder` and `LexiconFreeDecoder`; S3PRL `downstream/asr/w2l_decoder.py`.
Paper: Collobert et al. 2016, sec. 2.4, arXiv:1609.03193.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from speechssl.decode.arpa import END, START, UNKNOWN, UNKNOWN_SPELLINGS
from speechssl.decode.ctc import BLANK
from speechssl.decode.lexicon import SEPARATOR, Lexicon, Spell, read_lexicon, spell_words
from speechssl.errors import ConfigError, ManifestError, SpeechsslError
from speechssl.text_files import read_lines

NO_WORDS = (START, END, *UNKNOWN_SPELLINGS)
NEVER = -1e9  # a log-probability; flashlight compares and adds, and infinities would make NaN


@dataclass(frozen=True)
class DecodeConfig:
    """How transcripts are found; the numbers are S3PRL's for SUPERB (`downstream/asr/config.yaml`)."""

    method: Literal["greedy", "beam"] = "greedy"
    lm: str | None = None
    """n-gram model: an ARPA file, also with gzip, or a binary of KenLM; None = without."""
    lm_units: Literal["words", "tokens"] = "words"
    """What the model is of: words, or tokens ('|' between words, pieces as sentencepiece writes them)."""
    lexicon: str | None = None
    """File of a word per line, perhaps with its spelling behind it; None = the words of an ARPA file."""
    beam_size: int = 5
    beam_threshold: float = 25.0
    """Most that a hypothesis may lie below the best one."""
    tokens_per_frame: int | None = None
    """Only so many best classes of each frame are tried; None = all."""
    lm_weight: float = 2.0
    word_score: float = -1.0
    """Added for each word; searches of tokens have none."""
    tune: bool = False
    """Whether the two are chosen on dev instead, of all pairs of the next two."""
    lm_weights: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
    word_scores: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0)
    tune_utterances: int | None = 200
    """Of dev, chosen by a hash of their ids; None = all."""
    save_log_probs: bool = False
    """Whether the log-probabilities of dev and test are kept, as `python -m speechssl.decode.k2` reads them."""

    def __post_init__(self) -> None:
        if self.beam_size < 1 or self.beam_threshold <= 0:
            raise ConfigError(
                f"`decode.beam_size` must be 1 or more and `decode.beam_threshold` above 0, but they are "
                f"{self.beam_size} and {self.beam_threshold}."
            )
        if self.method == "greedy" and (self.lm or self.lexicon or self.tune):
            raise ConfigError("`decode.lm`, `decode.lexicon` and `decode.tune` need `decode.method=beam`.")
        if self.lexicon and self.lm_units == "tokens":
            raise ConfigError("`decode.lexicon` is of words: leave it out, or set `decode.lm_units=words`.")
        if self.tune and not (self.lm_weights and self.word_scores):
            raise ConfigError("`decode.tune` needs at least one of `decode.lm_weights` and of `decode.word_scores`.")

    @property
    def of_words(self) -> bool:
        """Whether words are searched, not tokens."""
        return self.lm_units == "words" and bool(self.lm or self.lexicon)


@dataclass(frozen=True)
class Tokens:
    """What the classes of a recogniser are."""

    names: tuple[str, ...]
    """As language models of tokens write them; the first is the blank."""
    spell: Spell
    write: Callable[[Sequence[int]], str]
    """The text of classes other than the blank."""

    @property
    def separator(self) -> int | None:
        """The class between words; None = there is none."""
        return self.names.index(SEPARATOR) if SEPARATOR in self.names else None


@dataclass(frozen=True)
class Found:
    """The best hypothesis of an utterance."""

    text: str
    score: float
    """Of the alignments, plus the weighed language model and the words'."""


class BeamDecoder:
    """Searches with one language model and lexicon, which is loaded once, under any weights."""

    def __init__(self, tokens: Tokens, config: DecodeConfig) -> None:
        """
        Raises:
            ConfigError: flashlight-text is missing, or a language model can't be read.
            ManifestError: a lexicon that is missing or malformed, or has no word that can be spelled.
        """
        self.tokens, self.config = tokens, config
        self._flashlight = import_flashlight()
        self._words: list[str] = []
        self._separator = tokens.separator if config.of_words else None
        if config.of_words:
            lexicon = read_spellings(tokens, config)
            self._words = list(lexicon.words)
            self._lm = self._language_model([*self._words, UNKNOWN])
            self._trie = self._make_trie(lexicon)
        else:
            self._lm = self._language_model(tokens.names)

    def decode(self, log_probs: Tensor, *, lm_weight: float, word_score: float) -> Found:
        """Finds the best transcript of one utterance.

        Args:
            log_probs: (T, V).
        """
        if log_probs.size(1) != len(self.tokens.names):
            raise SpeechsslError(
                f"There are {len(self.tokens.names)} tokens, but {log_probs.size(1)} log-probabilities."
            )
        table = log_probs.detach().float().cpu()
        if self._separator is not None:
            last = torch.full((1, table.size(1)), NEVER)
            last[0, self._separator] = 0.0
            table = torch.cat((table, last))  # (T + 1, V)
        table = table.contiguous()
        search = self._search(lm_weight, word_score)
        best = max(search.decode(table.data_ptr(), *table.shape), key=lambda one: one.score)
        if self.config.of_words:
            return Found(" ".join(self._words[k] for k in best.words if k >= 0), best.score)
        labels = [k for k, _ in groupby(best.tokens) if k != BLANK]
        return Found(self.tokens.write(labels), best.score)

    def _search(self, lm_weight: float, word_score: float) -> Any:
        flashlight, config = self._flashlight, self.config
        names = len(self.tokens.names)
        shared = {
            "beam_size": config.beam_size,
            "beam_size_token": min(config.tokens_per_frame or names, names),
            "beam_threshold": config.beam_threshold,
            "lm_weight": lm_weight,
            "sil_score": 0.0,
            "log_add": config.lm is None,
            "criterion_type": flashlight.CriterionType.CTC,
        }
        if not config.of_words:
            # The token that begins each hypothesis is the blank, so that the first frame may hold any.
            options = flashlight.LexiconFreeDecoderOptions(**shared)
            return flashlight.LexiconFreeDecoder(options, self._lm, BLANK, BLANK, [])
        options = flashlight.LexiconDecoderOptions(**shared, word_score=word_score, unk_score=-math.inf)
        between = BLANK if self._separator is None else self._separator
        unknown = len(self._words)
        return flashlight.LexiconDecoder(options, self._trie, self._lm, between, BLANK, unknown, [], False)

    def _language_model(self, names: Sequence[str]) -> Any:
        """The model of `names`, known to it by their places."""
        path = self.config.lm
        if path is None:
            return self._flashlight.ZeroLM()
        from flashlight.lib.text.decoder.kenlm import KenLM
        from flashlight.lib.text.dictionary import Dictionary

        check_file(path, "decode.lm")
        dictionary = Dictionary()
        for place, name in enumerate(names):
            dictionary.add_entry(name, place)
        try:
            return KenLM(path, dictionary)
        except RuntimeError as error:
            reason = " ".join(str(error).split("\n", 1)[-1].split())
            raise ConfigError(f"`decode.lm`, {path}, is no ARPA file or KenLM binary ({reason}).") from error

    def _make_trie(self, lexicon: Lexicon) -> Any:
        """Spellings with the best score of a word behind each beginning, so that pruning sees the language model."""
        between = BLANK if self._separator is None else self._separator
        trie = self._flashlight.Trie(len(self.tokens.names), between)
        start = self._lm.start(False)
        ending = [] if self._separator is None else [self._separator]
        for place, spelling in lexicon.entries:
            _, score = self._lm.score(start, place)
            trie.insert([*spelling, *ending], place, score)
        trie.smear(self._flashlight.SmearingMode.MAX)
        return trie


def import_flashlight() -> Any:
    """flashlight's decoders.

    Raises:
        ConfigError: flashlight-text is not installed.
    """
    try:
        from flashlight.lib.text import decoder
    except ImportError as error:
        raise ConfigError(
            "`decode.method=beam` needs flashlight-text: pip install 'speechssl[decode]', or leave it at greedy."
        ) from error
    return decoder


def check_file(path: str, key: str) -> None:
    """Sees that a file is there."""
    if not Path(path).is_file():
        raise ConfigError(f"`{key}` names {path}, which does not exist: check the path.")


def read_spellings(tokens: Tokens, config: DecodeConfig) -> Lexicon:
    """The words that are searched: those of the lexicon, or else of the language model, which the recogniser spells.

    Raises:
        ConfigError: a file that is missing, or a binary model without a lexicon.
        ManifestError: a spelling with an unknown token, with its line; no word that can be spelled.
    """
    if config.lexicon is not None:
        check_file(config.lexicon, "decode.lexicon")
        found = read_lexicon(Path(config.lexicon), tokens.names, spell=tokens.spell)
        if strange := set(found.words).intersection(UNKNOWN_SPELLINGS):
            raise ManifestError(
                f"The lexicon {config.lexicon} spells '{min(strange)}', which stands for all words that it lacks: take "
                "it out."
            )
        return found
    path = config.lm or ""
    return spell_words(_arpa_words(path), tokens.names, spell=tokens.spell, origin=path)


def _arpa_words(path: str) -> Iterator[str]:
    """The unigrams of an ARPA file, also of a packed one."""
    check_file(path, "decode.lm")
    inside = False
    for number, (_, text) in enumerate(read_lines(Path(path))):
        line = text.strip()
        if number == 0 and "\\data\\" not in line and line[0] not in "#\\":
            break
        if line.startswith("\\"):
            if inside:
                return
            inside = line == "\\1-grams:"
        elif inside and (word := line.split()[1]) not in NO_WORDS:
            yield word
    if not inside:
        raise ConfigError(
            f"`decode.lm`, {path}, is no ARPA file, so its words are not known: give them by `decode.lexicon`."
        )
