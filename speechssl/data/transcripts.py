"""Transcripts as tokens, for objectives that learn from them (CTC): 0 is the blank, units count from 1 on."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from speechssl.data.indexed import UtteranceIndex
from speechssl.errors import ConfigError, suggest

Units = Literal["characters", "words"]
BOUNDARY = " "


@dataclass(frozen=True)
class Transcripts:
    """Turns one label of an utterance into tokens."""

    key: str
    """The label that is the transcript, such as 'text' or 'phones'."""
    units: Units
    """'characters' of it, a space between two words being one, or the 'words' between its spaces (phones)."""
    vocabulary: tuple[str, ...]
    """Sorted; unit number n is the token n + 1."""

    @property
    def num_tokens(self) -> int:
        """The blank included."""
        return len(self.vocabulary) + 1

    @cached_property
    def _tokens(self) -> dict[str, int]:
        return {unit: number for number, unit in enumerate(self.vocabulary, 1)}

    def encode(self, labels: Mapping[str, Any]) -> list[int]:
        """The tokens of an utterance."""
        return [self._tokens[unit] for unit in split_units(str(labels[self.key]), self.units)]


def split_units(text: str, units: Units) -> list[str]:
    """The units of a transcript, in order."""
    words = text.split()
    return list(BOUNDARY.join(words)) if units == "characters" else words


def read_transcripts(
    index: UtteranceIndex, key: str, units: Units, *, rows: NDArray[np.int64]
) -> tuple[Transcripts, NDArray[np.int32]]:
    """Finds the vocabulary of all transcripts, and how long each is.

    Args:
        rows: the utterances that may be trained on, (R,).

    Returns:
        the transcripts, and of each row the fewest frames that CTC can write it in: its tokens, and a blank between
        two equal ones; 0 = it has no transcript.

    Raises:
        ConfigError: no utterance has a transcript; the message names the labels that there are.
    """
    found: set[str] = set()
    others: set[str] = set()
    frames = np.zeros(len(rows), dtype=np.int32)
    for place, row in enumerate(rows):
        labels = index.labels(int(row))
        sequence = split_units(str(labels[key]), units) if key in labels else []
        found.update(sequence)
        frames[place] = len(sequence) + _repeats(sequence)
        if key not in labels:
            others.update(labels)
    if not found:
        raise ConfigError(f"No utterance has a transcript in the label '{key}'.{suggest(key, others)}")
    return Transcripts(key, units, tuple(sorted(found))), frames


def _repeats(units: list[str]) -> int:
    return sum(a == b for a, b in pairwise(units))
