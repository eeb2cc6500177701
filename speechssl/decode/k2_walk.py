"""Viterbi search of the states of a lattice times the histories of a language model, in plain Python.

Most of a large lattice can't be on the best path, and is left alone: what a state may still gain, with each word at the
most that the model ever gives it, is known from behind, and a path that is there already says what has to be reached.
This drops nothing that could have won (A*; Hart, Nilsson and Raphael 1968). Needs nothing but Python.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from speechssl.decode.arpa import END, NgramModel, Words

HISTORIES = 100
"""Most that are followed from one state."""
ROUNDING = 1e-3
"""Scores that lie no more than this below what has to be reached are not dropped."""
_Entry = tuple[float, float, int, Any]
"""Score, unscaled language score, last arc, and the entry where that came from."""


@dataclass(frozen=True)
class Arcs:
    """The arcs of lattices, those of one after those of the other, in the order of the states that they leave."""

    source: list[int]
    """State within its lattice; states are ordered by time."""
    to: list[int]
    label: list[int]
    """-1 = to the final state."""
    acoustic: list[float]
    """Scores."""
    words: list[tuple[int, ...]]
    """From 1 on."""


@dataclass(frozen=True)
class Walked:
    """The best path of a lattice."""

    arcs: list[int]
    """None where there is no path."""
    language: float
    """Unscaled score of the model."""
    cut: int
    """States some of whose histories were dropped because they were too many."""


class Walk:
    """Finds best paths under another language model."""

    def __init__(self, arcs: Arcs, words: Words, grammar: NgramModel, scale: float, histories: int) -> None:
        """
        Args:
            words: word k is words[k - 1].
            scale: factor of the model's scores; nothing is dropped where it is below 0.
            histories: most that are followed from one state.
        """
        self.arcs, self.words, self.grammar, self.scale, self.histories = arcs, words, grammar, scale, histories
        *self._most, self._most_at_end = (scale * most for most in grammar.most([*words, END]))
        self._steps: dict[tuple[Words, tuple[int, ...], bool], tuple[float, Words]] = {}

    def __call__(self, first: int, last: int, known: Sequence[int]) -> Walked:
        """The best path among arcs first ... last - 1, one lattice's.

        Args:
            known: the arcs of any path from its beginning to its end; none = nothing can be dropped.
        """
        if first == last:
            return Walked([], 0.0, 0)
        arcs, scale = self.arcs, self.scale
        future, floor = self._future(first, last), self._score(known) - ROUNDING
        best: dict[int, dict[Words, _Entry]] = {arcs.source[first]: {self.grammar.start(): (0.0, 0.0, -1, None)}}
        final: dict[Words, _Entry] = {}
        left, entries, cut = -1, list[tuple[Words, _Entry]](), 0
        for arc in range(first, last):
            if arcs.source[arc] != left:
                left = arcs.source[arc]
                entries, dropped = self._foremost(best.pop(left, {}))
                cut += dropped
            ends, words, acoustic = arcs.label[arc] == -1, arcs.words[arc], arcs.acoustic[arc]
            ahead = 0.0 if ends else future.get(arcs.to[arc], -math.inf)
            needed = floor - ahead - acoustic
            if not entries or ahead == -math.inf:
                continue
            reached = final if ends else best.setdefault(arcs.to[arc], {})
            for history, entry in entries:
                gain, after = self._step(history, words, ends) if words or ends else (0.0, history)
                score = entry[0] + scale * gain
                if score >= needed:
                    score += acoustic
                    old = reached.get(after)
                    if old is None or score > old[0]:
                        reached[after] = (score, entry[1] + gain, arc, entry)
        if not final:
            return Walked([], 0.0, cut)
        winner = max(final.values(), key=lambda entry: entry[0])
        return Walked(_trace(winner), winner[1], cut)

    def _foremost(self, reached: dict[Words, _Entry]) -> tuple[list[tuple[Words, _Entry]], int]:
        """The best histories of a state, and whether any were dropped."""
        if len(reached) <= self.histories:
            return list(reached.items()), 0
        return heapq.nlargest(self.histories, reached.items(), key=lambda item: item[1][0]), 1

    def _future(self, first: int, last: int) -> dict[int, float]:
        """State -> the most that any path from it to the end can score."""
        arcs, found = self.arcs, dict[int, float]()
        for arc in range(last - 1, first - 1, -1):
            ahead = self._most_at_end if arcs.label[arc] == -1 else found.get(arcs.to[arc], -math.inf)
            ahead += arcs.acoustic[arc]
            for word in arcs.words[arc]:
                ahead += self._most[word - 1]
            if ahead > found.get(arcs.source[arc], -math.inf):
                found[arcs.source[arc]] = ahead
        return found

    def _score(self, path: Sequence[int]) -> float:
        if not path or self.scale < 0:
            return -math.inf
        total, history = 0.0, self.grammar.start()
        for arc in path:
            gain, history = self._step(history, self.arcs.words[arc], self.arcs.label[arc] == -1)
            total += self.arcs.acoustic[arc] + self.scale * gain
        return total

    def _step(self, history: Words, output: tuple[int, ...], ends: bool) -> tuple[float, Words]:
        """Log probability of an arc's words after a history, and the history after them."""
        key = (history, output, ends)
        if key not in self._steps:
            total = 0.0
            for word in (*(self.words[word - 1] for word in output), *([END] if ends else [])):
                log_prob, history = self.grammar.advance(history, word)
                total += log_prob
            self._steps[key] = total, history
        return self._steps[key]


def _trace(entry: _Entry | None) -> list[int]:
    arcs = []
    while entry is not None and entry[2] >= 0:
        arcs.append(entry[2])
        entry = entry[3]
    return arcs[::-1]
