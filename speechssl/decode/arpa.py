"""N-gram language models in the ARPA format: read, and scored exactly.

Conventions: scores are natural logarithms (the file has base 10). A history is a tuple of words, oldest first, and
always one that some n-gram continues, or (): a longer one that nothing continues has paid its back-off weight already,
which every continuation of it, the end of the sentence too, would pay anyway. So the score of a sentence is that of the
textbook, and two sentences that the model can't tell apart any more have the same history.

Format: the manual page ngram-format of SRILM; KenLM, SRILM and kaldilm write and read it.
Needs nothing but Python, since it also runs in the environment of k2.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from speechssl.errors import ManifestError, SpeechsslError
from speechssl.text_files import read_lines

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
UNKNOWN_SPELLINGS = ("<unk>", "<UNK>")
Words = tuple[str, ...]


@dataclass(frozen=True)
class NgramModel:
    """A back-off model; Katz 1987, IEEE Trans. ASSP 35(3)."""

    order: int
    ngrams: Mapping[Words, tuple[float, float]]
    """n-gram -> log probability of its last word after the others, log back-off weight of the whole."""
    histories: frozenset[Words]
    """What some n-gram continues, and the start of a sentence."""

    @property
    def words(self) -> set[str]:
        """All words but the start and the end of a sentence."""
        return {gram[0] for gram in self.ngrams if len(gram) == 1} - {START, END}

    def start(self) -> Words:
        """The history at the start of a sentence."""
        return (START,) if (START,) in self.histories else ()

    def settle(self, history: Words) -> tuple[float, Words]:
        """Back-off weight to pay now, and the longest suffix that some n-gram continues."""
        history, paid = (history[-(self.order - 1) :] if self.order > 1 else ()), 0.0
        while history and history not in self.histories:
            paid += self.ngrams.get(history, (0.0, 0.0))[1]
            history = history[1:]
        return paid, history

    def back_off(self, history: Words) -> tuple[float, Words]:
        """Weight of leaving out the oldest word of a history, and what remains of it."""
        paid, shorter = self.settle(history[1:])
        return self.ngrams.get(history, (0.0, 0.0))[1] + paid, shorter

    def advance(self, history: Words, word: str) -> tuple[float, Words]:
        """Log probability of `word` (or END) after `history`, and the history after it.

        A word that the model does not have counts as <unk>, and is impossible where it has none.
        """
        paid, gram = self._find(history, word)
        if not gram:
            return -math.inf, ()
        more, after = self.settle(gram)
        return paid + more, after

    def most(self, words: Sequence[str]) -> list[float]:
        """The most that each word (or END) can add to the score of a sentence, whatever stands before it."""
        best, gained = self._most
        return [best.get(word, best.get(UNKNOWN, -math.inf)) + gained for word in words]

    @cached_property
    def _most(self) -> tuple[Mapping[str, float], float]:
        """Word -> its largest log probability; and the most that weights paid with a word can add, mostly 0.

        It looks at every n-gram, and is asked for with each batch of lattices.
        """
        best: dict[str, float] = {}
        weights = [0.0] * self.order
        for gram, (log_prob, weight) in self.ngrams.items():
            best[gram[-1]] = max(log_prob, best.get(gram[-1], -math.inf))
            weights[len(gram) - 1] = max(weight, weights[len(gram) - 1])
        # One length may be paid twice: for the history that is left, and for the n-gram that nothing continues.
        return best, sum(weights) + max(weights)

    def score(self, sentence: Sequence[str]) -> float:
        """Log probability of a sentence, its end included."""
        total, history = 0.0, self.start()
        for word in (*sentence, END):
            log_prob, history = self.advance(history, word)
            total += log_prob
        return total

    def check_knows(self, words: Sequence[str]) -> None:
        """Sees that every word can be scored.

        Raises:
            SpeechsslError: the model lacks some of them and has no <unk> to score them by.
        """
        missing = [w for w in words if (w,) not in self.ngrams]
        if missing and (UNKNOWN,) not in self.ngrams:
            raise SpeechsslError(
                f"The language model has neither {len(missing)} of {len(words)} words of the lexicon, such as "
                f"'{missing[0]}', nor {UNKNOWN}: take words out of the lexicon, or train the model with {UNKNOWN}."
            )

    def overtaken(self) -> int:
        """How many n-grams score less than backing off from them would.

        A graph that takes the better of both, as decoding graphs do, over-rates these; interpolated models have none.
        """
        return sum(
            log_prob < self.ngrams[gram[:-1]][1] + self._find(gram[1:-1], gram[-1])[0] - 1e-5
            for gram, (log_prob, _) in self.ngrams.items()
            if len(gram) > 1 and gram[:-1] in self.ngrams
        )

    def _find(self, history: Words, word: str) -> tuple[float, Words]:
        """Log probability of a word after a history, and the n-gram that gave it; () = an impossible word."""
        if (word,) not in self.ngrams:
            word = UNKNOWN
        if (word,) not in self.ngrams:
            return -math.inf, ()
        paid = 0.0
        while (gram := (*history, word)) not in self.ngrams:
            paid += self.ngrams.get(history, (0.0, 0.0))[1]
            history = history[1:]
        return paid + self.ngrams[gram][0], gram


def read_arpa(path: Path) -> NgramModel:
    """Reads a model, also one that is packed with gzip.

    Raises:
        ManifestError: the file is missing or malformed, lacks the end of a sentence, or has not as many n-grams as it
            says.
    """
    ngrams: dict[Words, tuple[float, float]] = {}
    announced: dict[int, int] = {}
    order = 0
    for where, line in read_lines(path):
        if line.startswith("\\"):
            order = _section(line, where, order)
        elif order == 0 and line.startswith("ngram "):
            _announce(line, where, announced)
        elif order > 0:
            gram, scores = _entry(line, where, order)
            if gram in ngrams:
                raise ManifestError(f"{where} has the n-gram '{' '.join(gram)}' a second time: leave one out.")
            ngrams[gram] = scores
    _check(path, ngrams, announced, order)
    histories = {gram[:-1] for gram in ngrams} | ({(START,)} & set(ngrams) if max(announced) > 1 else set())
    return NgramModel(max(announced), ngrams, frozenset(histories - {()}))


def _section(line: str, where: str, order: int) -> int:
    """The order of the n-grams that follow: 0 for the counts, -1 behind the end."""
    name = line.strip()
    if name in ("\\data\\", "\\end\\"):
        return 0 if name == "\\data\\" else -1
    digits = name[1:].removesuffix("-grams:")
    if not (name.endswith("-grams:") and digits.isdigit() and int(digits) == order + 1):
        raise ManifestError(f"{where} must be '\\{order + 1}-grams:' or '\\end\\', but is '{name}'.")
    return int(digits)


def _announce(line: str, where: str, announced: dict[int, int]) -> None:
    order, _, count = line.removeprefix("ngram ").partition("=")
    if not (order.strip().isdigit() and count.strip().isdigit()):
        raise ManifestError(f"{where} must be like 'ngram 2=1000', but is '{line}'.")
    announced[int(order)] = int(count)


def _entry(line: str, where: str, order: int) -> tuple[Words, tuple[float, float]]:
    fields = line.split()
    if len(fields) not in (order + 1, order + 2):
        raise ManifestError(f"{where} must hold a score, {order} words and perhaps a back-off weight, but is '{line}'.")
    try:
        numbers = [float(fields[0]), float(fields[order + 1]) if len(fields) > order + 1 else 0.0]
    except ValueError as error:
        raise ManifestError(f"{where} has a score that is no number: '{line}'.") from error
    if any(math.isnan(n) for n in numbers) or numbers[0] > 1e-4:
        raise ManifestError(f"{where} has a log probability above 0 or a NaN: '{line}'.")
    words = tuple(UNKNOWN if w in UNKNOWN_SPELLINGS else w for w in fields[1 : order + 1])
    return words, (numbers[0] * math.log(10), numbers[1] * math.log(10))


def _check(path: Path, ngrams: Mapping[Words, object], announced: Mapping[int, int], order: int) -> None:
    found = dict.fromkeys(announced, 0)
    for gram in ngrams:
        found[len(gram)] = found.get(len(gram), 0) + 1
    if order != -1 or not announced:
        raise ManifestError(f"{path} has no '\\data\\' or no '\\end\\': it is cut short, or no ARPA file.")
    if found != dict(announced):
        raise ManifestError(f"{path} announces {dict(announced)} n-grams by order, but holds {found}.")
    if (END,) not in ngrams:
        raise ManifestError(f"{path} has no '{END}': train the language model with ends of sentences.")
