"""Decoding with k2: search of a graph, n-best lists and rescoring of lattices.

Conventions: log-probabilities are (T, V) float32 natural logarithms of the V classes, class 0 the blank, T frames of
one utterance. A lattice holds the paths within the beams; a hypothesis is the best alignment (Viterbi) of a word
sequence, so its score is a maximum over alignments, not a sum.

`python -m speechssl.decode.k2 --help` decodes saved log-probabilities; it needs nothing of this project's dependencies
but torch, numpy, safetensors and k2 (and jiwer with `--references`), and so runs where k2's last release does.

Reference: k2 1.23.4; icefall, icefall/decode.py. Rescoring a lattice with exact n-gram scores, which k2's own back-off
arcs only approximate, is ours.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechssl.decode.arpa import NgramModel, Words
from speechssl.decode.k2_graph import Graph, import_k2
from speechssl.decode.k2_walk import HISTORIES, Arcs, Walk
from speechssl.errors import SpeechsslError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beams:
    """How much of a graph is searched; defaults of icefall's conformer_ctc/decode.py."""

    search: float = 20.0
    """Most that a state's score may lie below the best one's of the same frame."""
    output: float = 8.0
    """Most that the best path through an arc of the lattice may lie below the best path."""
    min_active: int = 30
    """States kept at each frame whatever their score."""
    max_active: int = 10_000
    """About the most states kept at each frame."""


@dataclass(frozen=True)
class Hypothesis:
    """A word sequence in its best alignment."""

    words: Words
    """Without a lexicon: the tokens."""
    alignment: tuple[int, ...]
    """The class of each frame."""
    acoustic: float
    """Sum of the frames' log-probabilities."""
    language: float
    """Of the grammar, its scale included; 0 without one."""

    @property
    def score(self) -> float:
        """What the search maximises."""
        return self.acoustic + self.language


@dataclass(frozen=True)
class Lattice:
    """The paths of one batch of utterances that lie within the beams."""

    fsa: Any
    """k2.Fsa of as many automata as utterances; `place` numbers its arcs."""
    graph: Graph

    @cached_property
    def arcs(self) -> Arcs:
        """What a `Walk` takes; the same for every scale of a language model."""
        table = self.fsa.arcs.values()[:, :3].long().numpy()  # (arcs, 3)
        outputs = _Outputs(self.fsa)
        splits, values = outputs.splits.tolist(), outputs.values.tolist()
        numbers: dict[tuple[int, ...], int] = {(): 0}
        output = np.zeros(len(table), np.int64)
        for arc in np.flatnonzero(np.diff(outputs.splits.numpy())).tolist():
            spoken = tuple(word for word in values[splits[arc] : splits[arc + 1]] if word > 0)
            output[arc] = numbers.setdefault(spoken, len(numbers))
        source, to, label = (np.ascontiguousarray(table[:, k]) for k in range(3))
        return Arcs(source, to, label, self.acoustic.double().numpy(), output, list(numbers))

    @property
    def acoustic(self) -> Tensor:
        """(arcs,) scores without the grammar's part."""
        scores: Tensor = self.fsa.scores
        return scores - self.fsa.lm_scores if hasattr(self.fsa, "lm_scores") else scores


def search(log_probs: Sequence[Tensor], graph: Graph, *, beams: Beams = Beams()) -> Lattice:  # frozen
    """Searches a graph for the paths of each utterance.

    Args:
        log_probs: (T, V) of each utterance, V the number of the graph's tokens, T > 0.
        graph: see `speechssl.decode.k2_graph`; on the device of `log_probs`.
    """
    k2 = import_k2()
    for row, scores in enumerate(log_probs):
        if scores.dim() != 2 or scores.size(0) == 0 or scores.size(1) != len(graph.tokens):
            raise SpeechsslError(
                f"log_probs[{row}] must be (frames, {len(graph.tokens)}) with at least one frame, as the graph has "
                f"{len(graph.tokens)} tokens, but is {tuple(scores.shape)}."
            )
    padded = torch.nn.utils.rnn.pad_sequence([scores.float() for scores in log_probs], batch_first=True)  # (B, T, V)
    segments = torch.tensor([[row, 0, len(scores)] for row, scores in enumerate(log_probs)], dtype=torch.int32)
    fsa = k2.intersect_dense_pruned(
        graph.fsa,
        k2.DenseFsaVec(padded, segments),
        search_beam=beams.search,
        output_beam=beams.output,
        min_active_states=beams.min_active,
        max_active_states=beams.max_active,
    )
    fsa.place = torch.arange(fsa.num_arcs, dtype=torch.int32, device=fsa.device)
    fsa.place_filler = -1
    return Lattice(fsa, graph)


def best_paths(lattice: Lattice) -> list[Hypothesis | None]:
    """The best path of each utterance; None = the lattice has none."""
    best = import_k2().shortest_path(lattice.fsa, use_double_scores=True)
    read = _PathReader(lattice)
    return [read(best.place[a:b].tolist()) for a, b in _arc_ranges(best)]


def nbest(lattice: Lattice, count: int, *, draws: int | None = None, scale: float = 0.5) -> list[list[Hypothesis]]:
    """Different word sequences of each utterance, the best first, each in its best alignment.

    Args:
        lattice: of a graph with words.
        count: most hypotheses of an utterance.
        draws: paths to take them from, besides the best; None = 20 times `count`. k2 draws without randomness.
        scale: factor of the scores while paths are drawn; the lower, the more the sequences differ.
    """
    k2 = import_k2()
    drawn = lattice.fsa.clone()
    drawn.scores = lattice.fsa.scores * scale
    paths = k2.random_paths(drawn, use_double_scores=True, num_paths=draws or 20 * count).tolist()
    best = k2.shortest_path(lattice.fsa, use_double_scores=True)
    words = _Outputs(lattice.fsa)
    owners: list[int] = []
    sentences: list[list[int]] = []
    for row, (a, b) in enumerate(_arc_ranges(best)):
        candidates = [best.place[a:b].tolist(), *paths[row]] if b > a else []
        found = dict.fromkeys(map(words, candidates))
        owners += [row] * len(found)
        sentences += map(list, found)
    rows: list[list[Hypothesis]] = [[] for _ in paths]
    for row, hypothesis in zip(owners, _align(lattice, sentences, owners), strict=True):
        rows[row].append(hypothesis)
    return [sorted(found, key=lambda h: -h.score)[:count] for found in rows]


def _align(lattice: Lattice, sentences: Sequence[Sequence[int]], owners: Sequence[int]) -> list[Hypothesis]:
    """The best path of each sentence (word indices) in the lattice of its owner."""
    if not sentences:
        return []
    k2 = import_k2()
    aligned = k2.intersect_device(
        k2.arc_sort(k2.invert(lattice.fsa)),
        k2.add_epsilon_self_loops(k2.linear_fsa(sentences)),
        b_to_a_map=torch.tensor(owners, dtype=torch.int32),
        sorted_match_a=True,
    )
    best = k2.shortest_path(k2.top_sort(k2.connect(aligned)), use_double_scores=True)
    read = _PathReader(lattice)
    # Inverting spreads the words of an arc over several; all but the first have no place.
    found = [read([place for place in best.place[a:b].tolist() if place >= 0]) for a, b in _arc_ranges(best)]
    return [hypothesis for hypothesis in found if hypothesis is not None]


def rescore_nbest(
    hypotheses: Sequence[Hypothesis], score: Callable[[Words], float], *, lm_scale: float
) -> list[Hypothesis]:
    """An n-best list with the scores of another language model, the best first.

    Args:
        hypotheses: of one utterance.
        score: log probability of a sentence, such as `NgramModel.score` or that of a neural model.
        lm_scale: its factor.
    """
    rows = [replace(h, language=lm_scale * score(h.words)) for h in hypotheses]
    return sorted(rows, key=lambda h: -h.score)


def rescore_lattice(
    lattice: Lattice, grammar: NgramModel, *, lm_scale: float, histories: int = HISTORIES
) -> list[Hypothesis | None]:
    """The best path of each utterance when another n-gram model takes the place of the graph's.

    All paths of the lattice compete. Histories are followed one by one, so that an n-gram always counts where there is
    one, and backing off from it never does; with k2's intersection, where backing off is an epsilon arc, it might.

    Args:
        lattice: of a graph with words.
        grammar: any order.
        lm_scale: factor of its scores.
        histories: the most that are followed from one state, those with the best scores. Where there were more, the
            path that is found may not be the best one, and the log says so.
    """
    if lattice.graph.words is None:
        raise SpeechsslError("A lattice without words can't be rescored: search a graph with a lexicon.")
    grammar.check_knows(lattice.graph.words)
    read, walk = _PathReader(lattice), Walk(lattice.arcs, lattice.graph.words, grammar, lm_scale, histories)
    best = import_k2().shortest_path(lattice.fsa, use_double_scores=True)
    found, cut = [], 0
    for (a, b), (first, last) in zip(_arc_ranges(lattice.fsa), _arc_ranges(best), strict=True):
        walked = walk(a, b, best.place[first:last].tolist())
        hypothesis = read(walked.arcs)
        found.append(None if hypothesis is None else replace(hypothesis, language=lm_scale * walked.language))
        cut += walked.cut > 0
    if cut:
        message = "rescoring: in %d of %d lattices some states had more than %d histories, of which the best were kept"
        logger.info(message, cut, len(found), histories)
    return found


def decode(
    log_probs: Mapping[str, Tensor],
    graph: Graph,
    *,
    beams: Beams = Beams(),
    batch_frames: int = 1_000,
) -> Iterator[tuple[list[str], Lattice]]:
    """Searches any number of utterances, long ones first, batch by batch.

    Args:
        log_probs: (T, V) by utterance.
        graph: see `search`.
        batch_frames: most frames, padding included, that are searched at once.

    Yields:
        The utterances of a batch and their lattice.
    """
    batch: list[str] = []
    for name in sorted(log_probs, key=lambda key: -len(log_probs[key])):
        if batch and len(log_probs[batch[0]]) * (len(batch) + 1) > batch_frames:
            yield batch, search([log_probs[key] for key in batch], graph, beams=beams)
            batch = []
        batch.append(name)
    if batch:
        yield batch, search([log_probs[key] for key in batch], graph, beams=beams)


class _PathReader:
    """Turns arcs of a lattice into a hypothesis."""

    def __init__(self, lattice: Lattice) -> None:
        self._words = _Outputs(lattice.fsa)
        self._labels: Tensor = lattice.fsa.labels
        self._scores: Tensor = lattice.fsa.scores
        self._acoustic = lattice.acoustic
        self._names = lattice.graph.words or lattice.graph.tokens[1:]

    def __call__(self, arcs: Sequence[int]) -> Hypothesis | None:
        if not arcs:
            return None
        at = torch.tensor(arcs)
        acoustic = self._acoustic[at].double().sum()
        return Hypothesis(
            words=tuple(self._names[word - 1] for word in self._words(arcs)),
            alignment=tuple(label for label in self._labels[at].tolist() if label >= 0),
            acoustic=float(acoustic),
            language=float(self._scores[at].double().sum() - acoustic),
        )


class _Outputs:
    """The words (or tokens) of arcs."""

    def __init__(self, fsa: Any) -> None:
        self._plain = isinstance(fsa.aux_labels, Tensor)
        self.values: Tensor = fsa.aux_labels if self._plain else fsa.aux_labels.values
        self.splits: Tensor = torch.arange(fsa.num_arcs + 1) if self._plain else fsa.aux_labels.shape.row_splits(1)

    def __call__(self, arcs: Sequence[int]) -> tuple[int, ...]:
        at = torch.tensor(arcs, dtype=torch.long)
        spans = zip(self.splits[at].tolist(), self.splits[at + 1].tolist(), strict=True)
        return tuple(w for a, b in spans if b > a for w in self.values[a:b].tolist() if w > 0)


def _arc_ranges(fsas: Any) -> list[tuple[int, int]]:
    """First arc, and the one behind the last, of each automaton."""
    splits = fsas.arcs.shape().remove_axis(1).row_splits(1).tolist()
    return list(pairwise(splits))


if __name__ == "__main__":
    from speechssl.decode.k2_command import main

    main()
