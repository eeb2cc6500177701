"""Tokens and words of a decoder: their files, and the extra symbols that keep spellings apart.

tokens     one token a line in the order of the classes, the blank first; or '<token> <class>' as icefall writes it.
lexicon    '<word> <token> <token> ...' a line, several lines for several pronunciations; a '|' at the end, as fairseq's
           lexicons have it, is not part of the word. A word alone is spelled by the recogniser's own rule. Lines that
           begin with ';;;' are comments, as in the CMU pronouncing dictionary.

Needs nothing but Python, since it also runs in the environment of k2.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechssl.decode.arpa import END, START
from speechssl.errors import ManifestError
from speechssl.text_files import all_lines, read_lines

logger = logging.getLogger(__name__)
BLANK = 0
SEPARATOR = "|"
SEPARATORS = (" ", SEPARATOR)
COMMENT = ";;;"
Row = tuple[str, str, Sequence[str]]
"""Where a word stands, the word, and its spelling without the token between words; none = it is there without one."""
Spell = Callable[[str], Sequence[int]]
"""The classes of a word, from 1 on; none where it can't be spelled."""


@dataclass(frozen=True)
class Lexicon:
    """How words are spelled in a model's tokens."""

    words: tuple[str, ...]
    """Each word once."""
    entries: tuple[tuple[int, tuple[int, ...]], ...]
    """Index into `words`, and the classes of its tokens, one entry a pronunciation."""


def read_tokens(path: Path) -> tuple[str, ...]:
    """Reads a model's tokens in the order of its classes; the first is the blank, whatever it is called.

    A line may hold nothing but a space, where that is the token between words. In a file of '<token> <class>' lines
    the disambiguation symbols (#0, #1, ...) behind the classes are left out.

    Raises:
        ManifestError: an unreadable file, fewer than two tokens, one that occurs twice, or classes with a gap.
    """
    tokens = [line for _, line in all_lines(path) if line]
    pairs = [re.fullmatch(r"(\S+)[ \t]+(\d+)", t) for t in tokens]
    if tokens and all(pairs):
        tokens = _in_order(path, [(m[1], int(m[2])) for m in pairs if m])
    return check_tokens(tokens, str(path))


def check_tokens(tokens: Sequence[str], where: str) -> tuple[str, ...]:
    """The tokens, if a decoder can work with them.

    Raises:
        ManifestError: fewer than two, or one that occurs twice.
    """
    twice = [t for t, n in Counter(tokens).items() if n > 1]
    if len(tokens) < 2 or twice:
        problem = f"has the token '{twice[0]}' twice" if twice else "has fewer than two tokens"
        raise ManifestError(f"{where} {problem}: it must list the blank and then each token of the model once.")
    return tuple(tokens)


def read_rows(path: Path) -> Iterator[Row]:
    """The lines of a lexicon.

    Raises:
        ManifestError: a missing file, or one that is no UTF-8 text.
    """
    for where, line in read_lines(path):
        if line.startswith(COMMENT):
            continue
        word, *spelling = line.split()
        while spelling and spelling[-1] == SEPARATOR:
            spelling.pop()
        yield where, word, spelling


def read_lexicon(path: Path, tokens: Sequence[str], *, spell: Spell | None = None) -> Lexicon:
    """Reads a lexicon; words without a spelling that can't be spelled are left out, and counted in a warning.

    Args:
        tokens: what the classes are called, the blank first.
        spell: of words without a spelling; None = by their characters.

    Raises:
        ManifestError: an unreadable or empty file, a spelling with an unknown token, with its line, or not one word
            that can be spelled.
    """
    rows = list(read_rows(path))
    if not rows:
        raise ManifestError(f"{path} has no words: a lexicon has '<word> <token> <token> ...' lines.")
    lexicon, left_out = make_lexicon(rows, tokens, spell=spell, origin=str(path))
    if left_out:
        _warn(next(where for where, word, _ in rows if word == left_out[0]), left_out)
    return lexicon


def spell_words(words: Iterable[str], tokens: Sequence[str], *, spell: Spell | None = None, origin: str) -> Lexicon:
    """The words of a language model as a lexicon; those that can't be spelled are left out, and counted in a warning.

    Args:
        tokens: as `make_lexicon`; so are the next ones.
    """
    lexicon, left_out = make_lexicon([(origin, word, ()) for word in words], tokens, spell=spell, origin=origin)
    if left_out:
        _warn(origin, left_out)
    return lexicon


def _warn(where: str, left_out: Sequence[str]) -> None:
    message = "%s has '%s', the first of %d words with characters that the recogniser lacks, which can't be found"
    logger.warning(message, where, left_out[0], len(left_out))


def make_lexicon(
    rows: Iterable[Row], tokens: Sequence[str], *, spell: Spell | None = None, origin: str
) -> tuple[Lexicon, list[str]]:
    """Words with the classes of their tokens, and the words without a spelling that can't be spelled.

    Args:
        tokens: what the classes are called, the blank first.
        spell: of words without a spelling; None = by their characters.
        origin: of the rows, for messages.

    Raises:
        ManifestError: a spelling with an unknown token, an edge of a sentence as a word, or not one word that can be
            spelled.
    """
    classes = {token: k for k, token in enumerate(tokens) if k != BLANK}
    words: dict[str, int] = {}
    entries: dict[tuple[int, tuple[int, ...]], None] = {}
    left_out: dict[str, None] = {}
    for where, word, spelling in rows:
        if word in (START, END):
            raise ManifestError(f"{where} has the word '{word}', which stands for an edge of a sentence: take it out.")
        if spelling:
            labels = _look_up(spelling, classes, f"{where} spells '{word}'", tokens)
        else:
            labels = tuple(_by_characters(word, classes) if spell is None else spell(word))
        if labels:
            entries[words.setdefault(word, len(words)), labels] = None
        else:
            left_out[word] = None
    if not words:
        raise ManifestError(
            f"None of {len(left_out)} words of {origin}, such as '{next(iter(left_out), '')}', can be spelled by the "
            f"{len(tokens)} tokens of the recogniser: write them in the case of its training texts, or with spellings."
        )
    return Lexicon(tuple(words), tuple(entries)), list(left_out)


def find_separator(tokens: Sequence[str]) -> str | None:
    """The token that stands between words: a space or '|', whichever the model has; None = neither."""
    return next((s for s in SEPARATORS if s in tokens[1:]), None)


def disambiguate(lexicon: Lexicon) -> list[int]:
    """Which extra symbol (1, 2, ...; 0 = none) ends each entry, so that no two can be taken for each other.

    One is needed where two words sound the same, or where a spelling is the beginning of another.

    Paper: Mohri, Pereira and Riley 2002, Computer Speech & Language 16(1) (auxiliary symbols).
    """
    spellings = Counter(spelling for _, spelling in lexicon.entries)
    beginnings = {spelling[:n] for spelling in spellings for n in range(1, len(spelling))}
    used: Counter[tuple[int, ...]] = Counter()
    symbols = []
    for _, spelling in lexicon.entries:
        needed = spellings[spelling] > 1 or spelling in beginnings
        used[spelling] += needed
        symbols.append(used[spelling])
    return symbols


def _in_order(path: Path, pairs: Sequence[tuple[str, int]]) -> list[str]:
    named = sorted((index, token) for token, index in pairs if not re.fullmatch(r"#\d+", token))
    if [index for index, _ in named] != list(range(len(named))):
        raise ManifestError(f"{path} must number its tokens 0, 1, 2, ... without a gap or a repetition.")
    return [token for _, token in named]


def _look_up(
    spelling: Sequence[str], classes: Mapping[str, int], beginning: str, tokens: Sequence[str]
) -> tuple[int, ...]:
    unknown = [token for token in spelling if token not in classes]
    if unknown:
        shown = " ".join(tokens[1:21]) + (" ..." if len(tokens) > 21 else "")
        raise ManifestError(
            f"{beginning} with '{unknown[0]}', which is not among the model's tokens ({shown}): correct the spelling "
            "or take the word out."
        )
    return tuple(classes[token] for token in spelling)


def _by_characters(word: str, classes: Mapping[str, int]) -> list[int]:
    return [classes[c] for c in word] if all(c in classes for c in word) else []
