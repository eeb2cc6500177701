"""Viterbi search of the states of a lattice times the histories of a language model, many at a time with numpy.

Most of a large lattice can't be on the best path, and is left alone: what a state may still gain, with each word at the
most that the model ever gives it, is known from behind, and a path that is there already says what has to be reached.
This drops nothing that could have won (A*; Hart, Nilsson and Raphael 1968). Needs nothing but numpy.

A entries (a state and a history of the model, with the best path to them), N arcs times entries.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from speechssl.decode.arpa import END, NgramModel, Words

HISTORIES = 100
"""Most that are followed from one state."""
ROUNDING = 1e-3
"""Scores that lie no more than this below what has to be reached are not dropped."""
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Arcs:
    """The arcs of lattices, those of one after those of the other, in the order of the states that they leave."""

    source: Ints
    """State within its lattice; states are ordered by time."""
    to: Ints
    label: Ints
    """-1 = to the final state."""
    acoustic: Floats
    """Scores."""
    output: Ints
    """Which of the outputs."""
    outputs: Sequence[tuple[int, ...]]
    """Words, from 1 on; the first output has none."""


@dataclass(frozen=True)
class Walked:
    """The best path of a lattice."""

    arcs: list[int]
    """None where there is no path."""
    language: float
    """Unscaled score of the model."""
    cut: int
    """States some of whose histories were dropped because they were too many."""
    followed: int
    """How many entries were made, before those of one state and history were joined."""


@dataclass(frozen=True)
class _Entries:
    """(A,) each."""

    state: Ints
    history: Ints
    score: Floats
    language: Floats
    """Unscaled."""
    arc: Ints
    """The last of the path."""
    before: Ints
    """The entry that it came from; -1 = none."""

    def take(self, rows: Ints | NDArray[np.bool_]) -> "_Entries":
        return _Entries(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def join(cls, parts: Sequence["_Entries"]) -> "_Entries":
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


class Walk:
    """Finds best paths under another language model."""

    def __init__(self, arcs: Arcs, words: Words, grammar: NgramModel, scale: float, histories: int) -> None:
        """
        Args:
            words: word k is words[k - 1].
            scale: factor of the model's scores; nothing is dropped where it is below 0.
            histories: most that are followed from one state.
        """
        self.words, self.grammar, self.scale, self.most_histories = words, grammar, scale, histories
        self._source, self._to, self._acoustic, self._ends = arcs.source, arcs.to, arcs.acoustic, arcs.label == -1
        self._output, self._outputs = arcs.output, arcs.outputs
        *most, at_end = grammar.most([*words, END])
        most_of = np.array([sum(most[word - 1] for word in spoken) for spoken in self._outputs])
        with np.errstate(invalid="ignore"):  # 0 times minus infinity can't win
            self._most = scale * (most_of[self._output] + np.where(self._ends, at_end, 0.0))
        self._histories: list[Words] = []
        self._numbers: dict[Words, int] = {}
        self._steps: dict[int, tuple[float, int]] = {}

    def __call__(self, first: int, last: int, known: Sequence[int]) -> Walked:
        """The best path among arcs first ... last - 1, one lattice's.

        Args:
            known: the arcs of any path from its beginning to its end; none = nothing can be dropped.
        """
        if first == last:
            return Walked([], 0.0, 0, 0)
        blocks = _blocks(self._source[first:last].tolist(), self._to[first:last].tolist(), first)
        ahead, floor = self._ahead(blocks), self._score(known) - ROUNDING
        begin = np.array([self._source[first], self._number(self.grammar.start())])
        waiting = _Entries(begin[:1], begin[1:], np.zeros(1), np.zeros(1), np.array([-1]), np.array([-1]))
        ended, behind = list[_Entries](), list[_Entries]()
        cut, followed, made = 0, 0, 0
        for a, b in blocks:
            due = waiting.state <= self._source[b - 1]
            entries, dropped = self._foremost(_best(waiting.take(due)))
            reached = self._follow(entries, (a, b), ahead[a - first : b - first], floor, made)
            ends = self._ends[reached.arc]
            ended.append(reached.take(ends))
            waiting = _Entries.join([waiting.take(~due), reached.take(~ends)])
            behind.append(entries)
            made, followed, cut = made + len(entries.arc), followed + len(reached.arc), cut + dropped
        final = _Entries.join(ended)
        if not len(final.score):
            return Walked([], 0.0, cut, followed)
        winner = int(final.score.argmax())
        path = _trace(_Entries.join(behind), int(final.arc[winner]), int(final.before[winner]))
        return Walked(path, float(final.language[winner]), cut, followed)

    def _follow(
        self, entries: _Entries, block: tuple[int, int], ahead: Floats, floor: float, made: int
    ) -> _Entries:  # fmt: skip
        """What the arcs of a block make of the entries of the states that they leave.

        Args:
            ahead: the most that can be gained behind each arc.
            floor: what has to be reached at the end.
            made: entries that were kept before these.
        """
        source = self._source[slice(*block)]
        low, high = (np.searchsorted(entries.state, source, side) for side in ("left", "right"))
        counts = high - low
        place = np.repeat(np.arange(len(source)), counts)  # (N,) arcs of the block
        row = np.arange(len(place)) + np.repeat(low - np.cumsum(counts) + counts, counts)  # (N,) entries
        gained = self._acoustic[slice(*block)] + ahead
        hopeful = entries.score[row] + (self._most[slice(*block)] + gained)[place] >= floor
        place, row = place[hopeful], row[hopeful]
        arc = place + block[0]
        gain, after = self._gains(entries.history[row], arc)
        with np.errstate(invalid="ignore"):
            score = entries.score[row] + self.scale * gain
        kept = score + gained[place] >= floor
        arc, row = arc[kept], row[kept]
        language = entries.language[row] + gain[kept]
        return _Entries(self._to[arc], after[kept], score[kept] + self._acoustic[arc], language, arc, made + row)

    def _gains(self, history: Ints, arc: Ints) -> tuple[Floats, Ints]:
        """(N,) log probabilities of the words of arcs after histories, and the histories after them."""
        gain, after = np.zeros(len(arc)), history.copy()
        spoken = np.flatnonzero((self._output[arc] > 0) | self._ends[arc])
        output = 2 * self._output[arc[spoken]] + self._ends[arc[spoken]]
        keys, back = np.unique(history[spoken] * (2 * len(self._outputs)) + output, return_inverse=True)
        steps = [self._step(key) for key in keys.tolist()]
        gain[spoken] = np.array([step[0] for step in steps], np.float64)[back]
        after[spoken] = np.array([step[1] for step in steps], np.int64)[back]
        return gain, after

    def _step(self, key: int) -> tuple[float, int]:
        """Log probability of words after a history, and the history after them, by their numbers."""
        if key not in self._steps:
            number, output = divmod(key, 2 * len(self._outputs))
            total, history = 0.0, self._histories[number]
            for word in (*(self.words[w - 1] for w in self._outputs[output // 2]), *([END] if output % 2 else [])):
                log_prob, history = self.grammar.advance(history, word)
                total += log_prob
            self._steps[key] = total, self._number(history)
        return self._steps[key]

    def _number(self, history: Words) -> int:
        if history not in self._numbers:
            self._numbers[history] = len(self._histories)
            self._histories.append(history)
        return self._numbers[history]

    def _foremost(self, entries: _Entries) -> tuple[_Entries, int]:
        """The best histories of each state, and the number of states of which any were dropped."""
        order = np.lexsort((-entries.score, entries.state))
        state = entries.state[order]
        rank = np.arange(len(state)) - np.searchsorted(state, state)
        cut = int((rank == self.most_histories).sum())
        return entries.take(order[rank < self.most_histories]), cut

    def _ahead(self, blocks: Sequence[tuple[int, int]]) -> Floats:
        """The most that any path can score from behind an arc to the end; minus infinity = it does not lead there."""
        first, last = blocks[0][0], blocks[-1][1]
        found = np.full(1 + max(self._source[last - 1], self._to[first:last].max()), -math.inf)  # by state
        ahead = np.empty(last - first)
        for a, b in reversed(blocks):
            after = np.where(self._ends[a:b], 0.0, found[self._to[a:b]])
            ahead[a - first : b - first] = after
            source = self._source[a:b]
            begins = np.flatnonzero(np.diff(source, prepend=-1))
            found[source[begins]] = np.fmax.reduceat(after + self._acoustic[a:b] + self._most[a:b], begins)
        return ahead

    def _score(self, path: Sequence[int]) -> float:
        if not path or self.scale < 0:
            return -math.inf
        total, history = 0.0, np.array([self._number(self.grammar.start())])
        for arc in path:
            gain, history = self._gains(history, np.array([arc]))
            total += float(self._acoustic[arc] + self.scale * gain[0])
        return total


def _blocks(source: Sequence[int], to: Sequence[int], first: int) -> list[tuple[int, int]]:
    """Runs of arcs none of which leads to where another of its run begins: a frame each."""
    begins, reach = list[int](), -1.0
    for arc, (a, b) in enumerate(zip(source, to, strict=True), start=first):
        if a >= reach:
            begins.append(arc)
            reach = math.inf
        reach = min(reach, b)
    return list(zip(begins, [*begins[1:], first + len(source)], strict=True))


def _best(entries: _Entries) -> _Entries:
    """The best of each state and history."""
    order = np.lexsort((-entries.score, entries.history, entries.state))
    state, history = entries.state[order], entries.history[order]
    new = (np.diff(state, prepend=-1) != 0) | (np.diff(history, prepend=-1) != 0)
    return entries.take(order[new])


def _trace(entries: _Entries, arc: int, before: int) -> list[int]:
    arcs = []
    while arc >= 0:
        arcs.append(arc)
        arc, before = int(entries.arc[before]), int(entries.before[before])
    return arcs[::-1]
