"""Tokens and words of a decoder: their files, and the extra symbols that keep spellings apart.

tokens     one token a line in the order of the classes, the blank first; or '<token> <class>' as icefall writes it.
lexicon    '<word> <token> <token> ...' a line, several lines for several pronunciations; a word alone is spelled by its
           characters.

Needs nothing but Python, since it also runs in the environment of k2.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechssl.decode.arpa import END, START, read_lines
from speechssl.errors import ManifestError, SpeechsslError

BLANK = 0
SEPARATORS = (" ", "|")


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
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise ManifestError(f"{path} can't be read ({error.strerror}): give the path of an existing file.") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8 text: convert it, or give another file.") from error
    tokens = [line.rstrip("\r") for line in lines]
    tokens = [t for t in tokens if t]
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


def read_lexicon(path: Path, tokens: Sequence[str]) -> Lexicon:
    """Reads a lexicon.

    Raises:
        ManifestError: an unreadable or empty file, or a word that the tokens can't spell, with its line.
    """
    rows = [(f"{path}, line {number},", line.split()) for number, line in read_lines(path)]
    if not rows:
        raise ManifestError(f"{path} has no words: a lexicon has '<word> <token> <token> ...' lines.")
    return _lexicon([(where, fields[0], fields[1:] or list(fields[0])) for where, fields in rows], tokens)


def spell_words(words: Iterable[str], tokens: Sequence[str]) -> tuple[Lexicon, list[str]]:
    """A lexicon of words spelled by their characters, and the words that the tokens can't spell.

    Raises:
        SpeechsslError: not one word can be spelled.
    """
    known = set(tokens[1:])
    spelled: list[str] = []
    left_out: list[str] = []
    for word in sorted(words):
        (spelled if set(word) <= known else left_out).append(word)
    if not spelled:
        example = f" ('{left_out[0]}', for one)" if left_out else ""
        raise SpeechsslError(
            f"None of {len(left_out)} words of the language model{example} can be spelled by the characters among the "
            f"model's {len(tokens)} tokens: give a `--lexicon` that says how words are spelled."
        )
    return _lexicon([(f"The word '{w}'", w, list(w)) for w in spelled], tokens), left_out


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


def _lexicon(rows: Sequence[tuple[str, str, Sequence[str]]], tokens: Sequence[str]) -> Lexicon:
    classes = {token: k for k, token in enumerate(tokens)}
    words: dict[str, int] = {}
    entries: dict[tuple[int, tuple[int, ...]], None] = {}
    for where, word, spelling in rows:
        if word in (START, END):
            raise ManifestError(f"{where} has the word '{word}', which stands for an edge of a sentence: take it out.")
        unknown = [t for t in spelling if classes.get(t, BLANK) == BLANK]
        if unknown:
            shown = " ".join(tokens[1:21]) + (" ..." if len(tokens) > 21 else "")
            raise ManifestError(
                f"{where} spells '{word}' with '{unknown[0]}', which is not among the model's tokens ({shown}): "
                "correct the spelling or take the word out."
            )
        entries[words.setdefault(word, len(words)), tuple(classes[t] for t in spelling)] = None
    return Lexicon(tuple(words), tuple(entries))
