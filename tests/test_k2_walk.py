"""The walk through lattices that rescoring takes, without k2: against every path of small lattices."""

import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from k2_reference import Ngrams

from speechssl.decode.arpa import NgramModel, read_arpa
from speechssl.decode.k2_walk import Arcs, Walk

WORDS = ("a", "b", "c")
FRAMES, STATES = 7, 3


def model(folder: Path, order: int, *, sign: int = 1) -> NgramModel:
    """With sign -1 backing off is a gain, as no proper model has it."""
    drawn = Ngrams.random(list(WORDS), order, seed=order)
    entries = {gram: (score, sign * weight) for gram, (score, weight) in drawn.entries.items()}
    (folder / "lm.arpa").write_text(Ngrams(entries, order).text())
    return read_arpa(folder / "lm.arpa")


def lattice(seed: int, *, flat: bool = False) -> Arcs:
    """Three states a frame, each with arcs to two of the next; state numbers begin anew behind another lattice's."""
    draw = random.Random(seed)
    source, to, label, acoustic, words = list[int](), list[int](), list[int](), list[float](), list[tuple[int, ...]]()
    for frame in range(FRAMES + 1):
        for state in range(STATES if frame else 1):
            targets = draw.sample(range(STATES), 2) if frame < FRAMES else [0]
            for target in targets:
                source.append(1 + (frame - 1) * STATES + state if frame else 0)
                to.append(1 + frame * STATES + target)
                label.append(0 if frame < FRAMES else -1)
                acoustic.append(0.0 if flat else 8 * draw.random() - 8)
                words.append(tuple(draw.choices((1, 2, 3), k=draw.choice((0, 0, 1, 1, 2)))))
    outputs = sorted({(), *words})
    output = np.array([outputs.index(spoken) for spoken in words])
    return Arcs(np.array(source), np.array(to), np.array(label), np.array(acoustic), output, outputs)


def paths(arcs: Arcs) -> Iterator[list[int]]:
    """All of them."""
    leaving: dict[int, list[int]] = {}
    for arc, source in enumerate(arcs.source.tolist()):
        leaving.setdefault(source, []).append(arc)
    begun = [[arc] for arc in leaving[0]]
    while begun:
        path = begun.pop()
        if arcs.label[path[-1]] == -1:
            yield path
        else:
            begun += [[*path, arc] for arc in leaving.get(arcs.to[path[-1]], [])]


def score(path: list[int], arcs: Arcs, grammar: NgramModel, scale: float) -> float:
    words = [WORDS[word - 1] for arc in path for word in arcs.outputs[arcs.output[arc]]]
    return sum(arcs.acoustic[arc] for arc in path) + scale * grammar.score(words)


@pytest.mark.parametrize("sign", [1, -1], ids=["back-off costs", "back-off gains"])
@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("scale", [0.0, 0.7, 3.0])
def test_nothing_that_could_win_is_dropped(order: int, scale: float, sign: int, tmp_path: Path) -> None:
    grammar = model(tmp_path, order, sign=sign)
    for seed in range(6):
        arcs = lattice(seed, flat=seed == 0)
        everything = list(paths(arcs))
        walk = Walk(arcs, WORDS, grammar, scale, histories=10**6)
        best = max(score(path, arcs, grammar, scale) for path in everything)
        for known in ([], everything[0], everything[-1], max(everything, key=lambda p: score(p, arcs, grammar, scale))):
            found = walk(0, len(arcs.to), known)
            assert score(found.arcs, arcs, grammar, scale) == pytest.approx(best, abs=1e-9) and not found.cut
            own = sum(arcs.acoustic[arc] for arc in found.arcs) + scale * found.language
            assert own == pytest.approx(best, abs=1e-9)


def test_a_good_path_that_is_known_spares_work(tmp_path: Path) -> None:
    grammar, counts = model(tmp_path, 4), [0, 0]
    for seed in range(6):
        arcs = lattice(seed)
        walk = Walk(arcs, WORDS, grammar, 1.0, histories=10**6)
        alone = walk(0, len(arcs.to), [])
        helped = walk(0, len(arcs.to), alone.arcs)
        assert helped.arcs == alone.arcs
        counts[0] += alone.followed
        counts[1] += helped.followed
    assert 0 < counts[1] < 0.7 * counts[0], counts


def test_few_histories_are_counted_and_give_a_path_that_is_no_better(tmp_path: Path) -> None:
    grammar, arcs = model(tmp_path, 4), lattice(2)
    exact, one = (Walk(arcs, WORDS, grammar, 1.0, histories=most)(0, len(arcs.to), []) for most in (10**6, 1))
    assert one.cut > 0 and exact.cut == 0
    assert score(one.arcs, arcs, grammar, 1.0) <= score(exact.arcs, arcs, grammar, 1.0) + 1e-9


def test_a_lattice_without_an_end_has_no_path(tmp_path: Path) -> None:
    grammar, arcs = model(tmp_path, 2), lattice(3)
    assert Walk(arcs, WORDS, grammar, 1.0, histories=10)(0, len(arcs.to) - 3, []).arcs == []
    assert Walk(arcs, WORDS, grammar, 1.0, histories=10)(0, 0, []).arcs == []
    assert math.isfinite(Walk(arcs, WORDS, grammar, -1.0, histories=10)(0, len(arcs.to), []).language)


def test_no_word_adds_more_than_the_most_also_where_one_length_of_history_pays_twice() -> None:
    grams = ["a", "b", "c", "</s>", "a b", "b c", "a b a"]
    weights = {"a b": 2.0, "b c": 2.0}  # gains; (a, b) is left before c, and nothing continues (b, c)
    ngrams = {tuple(gram.split()): (-1.0, weights.get(gram, 0.0)) for gram in grams}
    grammar = NgramModel(3, ngrams, frozenset([(), ("a",), ("b",), ("a", "b")]))
    gain, after = grammar.advance(("a", "b"), "c")
    assert (gain, after) == (3.0, ())
    assert grammar.most(["c"])[0] >= gain
