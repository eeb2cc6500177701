"""Units: bits, use, runs and edit distances against closed forms and plain counting; neighbours over sequences."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from speechssl.analysis.token_knn import knn_evaluate, knn_predict
from speechssl.analysis.units import deduplicate, edit_distance, sequences, unit_edit_distance, unit_statistics
from speechssl.errors import SpeechsslError


def plain_entropy(symbols: list[object]) -> float:
    counts, total = Counter(symbols), len(symbols)
    return -sum(c / total * math.log2(c / total) for c in counts.values())


def plain_edits(first: list[int], second: list[int]) -> int:
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        previous, row = row, [i]
        for j, b in enumerate(second, start=1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (a != b)))
    return row[-1]


def test_bits_use_and_runs_are_what_counting_gives() -> None:
    rng = np.random.default_rng(0)
    codes = {f"u{i}": torch.from_numpy(rng.integers(0, 5, 40 + i)).repeat_interleave(2) for i in range(4)}
    found = unit_statistics(codes, frame_rate=50.0, entries=8)
    frames = [int(c) for own in codes.values() for c in own]
    runs = [(k, len(list(g))) for own in codes.values() for k, g in itertools.groupby(own.tolist())]
    seconds = len(frames) / 50.0
    segment = len(runs) / seconds * plain_entropy([k for k, _ in runs])
    assert found.bitrate == pytest.approx(len(frames) / seconds * plain_entropy(list(frames)), abs=1e-9)
    assert found.segment_bitrate == pytest.approx(segment, abs=1e-9)
    assert found.factored_bitrate == pytest.approx(
        segment + len(runs) / seconds * plain_entropy([n for _, n in runs]), abs=1e-9
    )
    assert (found.frames, found.runs, found.longest_run) == (len(frames), len(runs), max(n for _, n in runs))
    assert found.median_run == np.median([n for _, n in runs])
    assert found.perplexity == pytest.approx(2 ** plain_entropy(list(frames)), abs=1e-9)
    assert (found.used, found.nominal_bitrate) == (5 / 8, 150.0)
    assert sum(found.run_lengths) == found.runs


def test_even_use_of_all_entries_takes_the_nominal_bitrate() -> None:
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4))  # (16, 2)
    found = unit_statistics({"u": every}, frame_rate=25.0, entries=4)
    assert found.bitrate == pytest.approx(100.0, abs=1e-9)
    assert found.nominal_bitrate == pytest.approx(100.0, abs=1e-9)
    assert found.perplexity == pytest.approx(4.0, abs=1e-9)
    assert found.used == 1.0
    one = unit_statistics({"u": torch.full((10,), 3)}, frame_rate=25.0, entries=4)
    assert (one.bitrate, one.perplexity, one.runs, one.longest_run) == (0.0, 1.0, 1, 10)


def test_deduplicated_units_and_their_lengths_give_the_frames_back() -> None:
    for shape in ((60,), (60, 2)):
        codes = torch.randint(2, shape, generator=torch.Generator().manual_seed(0))
        units, lengths = deduplicate(codes)
        assert torch.equal(units.repeat_interleave(lengths, dim=0), codes)
        neighbours = (units[1:] != units[:-1]).reshape(len(units) - 1, -1)
        assert neighbours.any(dim=1).all()


def test_units_of_the_text_alone_have_no_distance_and_units_of_the_voice_the_largest() -> None:
    texts = {f"{s}{t}": t for s in "ABC" for t in ("one", "two", "three")}
    speakers = {name: name[0] for name in texts}
    order = {"one": [0, 1], "two": [2, 3, 4], "three": [5]}
    of_text = {n: torch.tensor(order[t]).repeat_interleave(1 + ord(n[0]) % 3) for n, t in texts.items()}
    found = unit_edit_distance(of_text, texts, speakers)
    assert (found.distance, found.high, found.texts, found.pairs) == (0.0, 0.0, 3, 9)
    assert found.control == 1.0
    of_voice = {n: torch.tensor(order[t]) + 10 * ord(n[0]) for n, t in texts.items()}
    assert unit_edit_distance(of_voice, texts, speakers).distance == 1.0
    with pytest.raises(SpeechsslError, match="No text is said by two speakers"):
        unit_edit_distance(of_text, texts, dict.fromkeys(texts, "A"))


def test_edits_are_those_of_the_plain_recursion() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        first, second = (rng.integers(0, 400, rng.integers(1, 12)).tolist() for _ in range(2))
        assert edit_distance(first, second) == pytest.approx(
            plain_edits(first, second) / max(len(first), len(second)), abs=1e-12
        )


def test_codes_of_several_codebooks_are_one_unit_where_all_are_equal() -> None:
    codes = {"a": torch.tensor([[0, 1], [0, 1], [1, 0]]), "b": torch.tensor([[1, 0], [0, 2]])}
    found = sequences(codes)
    assert len(found["a"]) == 2
    assert found["a"][1] == found["b"][0]
    assert found["b"][1] not in found["a"]
    assert len(sequences(codes, dedup=False)["a"]) == 3


def test_neighbours_are_those_of_scikit_learn_on_the_same_distances() -> None:
    rng = np.random.default_rng(2)
    units = [rng.integers(0, 6, rng.integers(3, 15)).tolist() for _ in range(60)]
    labels = [str(rng.choice(["x", "y"])) for _ in units]
    train, test = units[:40], units[40:]

    def table(rows: list[list[int]]) -> list[list[float]]:
        return [[plain_edits(a, b) / max(len(a), len(b)) for b in train] for a in rows]

    peer = KNeighborsClassifier(n_neighbors=1, metric="precomputed").fit(table(train), labels[:40])
    nearest_is_one = [sorted(row)[0] < sorted(row)[1] for row in table(test)]
    ours = np.array(knn_predict(train, labels[:40], test, k=1))
    assert sum(nearest_is_one) > 10
    assert (ours == peer.predict(table(test)))[nearest_is_one].all()


def test_order_tells_labels_that_counts_of_units_do_not() -> None:
    rng = np.random.default_rng(3)
    labels = [str(rng.choice(["up", "down"])) for _ in range(60)]
    units = []
    for label in labels:
        held = np.sort(rng.choice(30, 10, replace=False))
        units.append((held if label == "up" else held[::-1]).tolist())
    groups = [str(i // 6) for i in range(60)]
    found = knn_evaluate(units, labels, k=3, groups=groups)
    assert found.accuracy.value > 0.95
    assert found.average_recall.value > 0.95
    shuffled = knn_evaluate([rng.permutation(u).tolist() for u in units], labels, k=3, groups=groups)
    assert shuffled.accuracy.value < 0.8
    with pytest.raises(SpeechsslError, match="no neighbour outside its own group"):
        knn_evaluate(units, labels, k=3, groups=["one"] * 60)


def test_codes_beyond_the_codebook_are_refused_by_name() -> None:
    with pytest.raises(SpeechsslError, match=r"codes of 'u' must lie in 0\.\.3, but range 0\.\.4"):
        unit_statistics({"u": torch.arange(5)}, frame_rate=50.0, entries=4)
    with pytest.raises(SpeechsslError, match="no units to measure"):
        unit_statistics({}, frame_rate=50.0, entries=4)
