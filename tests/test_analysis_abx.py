"""ABX against its definition, spelt out triple by triple, and in cases whose answer is known."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor

from speechssl.alignment.path_mean import path_means
from speechssl.analysis.abx.items import AbxItem, Phone, item_frames, make_items, read_items, write_items
from speechssl.analysis.abx.score import DISTANCES, AbxDistance, abx_error
from speechssl.analysis.abx.task import AbxSettings, plan_abx
from speechssl.errors import ManifestError, SpeechsslError

RATE = 50.0
EVERYTHING = {"max_size_group": None, "max_x_across": None}
Array = NDArray[np.float64]


def slow_path_mean(costs: Array) -> float:
    """The best sum by the recursion, divided by the cells that are met on the way back from the end."""
    n, m = costs.shape
    total = np.full((n, m), math.inf)
    for i, j in itertools.product(range(n), range(m)):
        before = [total[a, b] for a, b in ((i - 1, j - 1), (i, j - 1), (i - 1, j)) if a >= 0 and b >= 0]
        total[i, j] = costs[i, j] + min(before, default=0.0)
    i, j, cells = n - 1, m - 1, 1
    while i or j:
        steps = [(i - 1, j - 1), (i, j - 1), (i - 1, j)]
        i, j = min((s for s in steps if min(s) >= 0), key=lambda s: total[s])  # the first of those that are equal
        cells += 1
    return float(total[-1, -1] / cells)


def slow_costs(distance: AbxDistance) -> Callable[[Array, Array], Array]:
    def kl(first: Array, second: Array) -> Array:
        p, q = first[:, None], second[None]
        return np.asarray(0.5 * ((p - q) * (np.log(p + 1e-6) - np.log(q + 1e-6))).sum(axis=2))

    costs: dict[AbxDistance, Callable[[Array, Array], Array]] = {
        "angular": lambda x, y: np.arccos(np.clip(1.0 - cdist(x, y, "cosine"), -1, 1)) / math.pi,
        "euclidean": cdist,
        "kl": kl,
        "identical": lambda x, y: (cdist(x, y) > 0).astype(float),
    }
    return costs[distance]


def slow_abx(
    items: Sequence[AbxItem], features: dict[str, Tensor], settings: AbxSettings, distance: AbxDistance
) -> float:
    """Every triple of every cell; then contexts and speakers of X, speakers of A and B, and pairs of phones."""
    costs, memory = slow_costs(distance), dict[tuple[int, int], float]()

    def frames(item: AbxItem) -> Array:
        first, end = item_frames(item, RATE)
        return np.asarray(features[item.file][first:end].double())

    def d(x: int, y: int) -> float:
        if (x, y) not in memory:
            memory[x, y] = slow_path_mean(costs(frames(items[x]), frames(items[y])))
        return memory[x, y]

    cells = defaultdict(list)
    across, within = settings.speaker == "across", settings.context == "within"
    for (a, i), (b, j), (x, k) in itertools.product(enumerate(items), repeat=3):
        if i.phone != k.phone or i.phone == j.phone or i.speaker != j.speaker or a == x:
            continue
        if (i.speaker != k.speaker) != across:
            continue
        contexts = {(t.before, t.after) for t in (i, j, k)}
        if within and len(contexts) > 1:
            continue
        error = (d(x, a) > d(x, b)) + 0.5 * (d(x, a) == d(x, b))
        cells[i.phone, j.phone, i.speaker, k.speaker, contexts.pop() if within else ""].append(float(error))
    means: dict[tuple[object, ...], float] = {key: float(np.mean(values)) for key, values in cells.items()}
    for kept in (3, 2, 0):
        gathered = defaultdict(list)
        for key, value in means.items():
            gathered[key[:kept]].append(value)
        means = {key: float(np.mean(values)) for key, values in gathered.items()}
    return means[()]


def tokens(count: int, *, seed: int, contexts: str = "xy", phones: str = "abc") -> list[AbxItem]:
    """Tokens of 60 to 200 ms in four files of two seconds, of three speakers."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        onset, speaker = round(float(rng.uniform(0, 1.7)), 4), int(rng.integers(3))
        span = round(onset + float(rng.uniform(0.06, 0.2)), 4)
        phone, before = (str(rng.choice(list(kind))) for kind in (phones, contexts))
        found.append(AbxItem(f"s{speaker}", onset, span, phone, before, "z", f"s{speaker}"))
    return found


def features_of(items: Sequence[AbxItem], distance: AbxDistance = "angular", *, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for file in sorted({item.file for item in items}):
        if distance == "identical":
            found[file] = torch.randint(3, (100, 1), generator=generator)
        else:
            frames = torch.randn(100, 6, generator=generator, dtype=torch.float64)
            found[file] = frames.softmax(dim=1) if distance == "kl" else frames
    return found


def measured(
    items: Sequence[AbxItem], features: dict[str, Tensor], settings: AbxSettings, distance: AbxDistance = "angular"
) -> float:
    task = plan_abx(items, {file: len(frames) for file, frames in features.items()}, RATE, settings)
    return abx_error(task, features, distance=distance).error


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("speaker", ["within", "across"])
@pytest.mark.parametrize("context", ["within", "any"])
def test_the_error_is_that_of_all_triples(
    speaker: Literal["within", "across"], context: Literal["within", "any"], distance: AbxDistance
) -> None:
    items = tokens(45, seed=1)
    features = features_of(items, distance)
    settings = AbxSettings(speaker, context, **EVERYTHING)  # type: ignore[arg-type]  # None twice
    expected = slow_abx(items, features, settings, distance)
    assert measured(items, features, settings, distance) == pytest.approx(expected, abs=1e-6)


def test_large_families_are_computed_in_blocks_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    items = tokens(60, seed=2, contexts="x")
    features = features_of(items)
    settings = AbxSettings("within", "any", **EVERYTHING)  # type: ignore[arg-type]  # None twice
    whole = measured(items, features, settings)
    monkeypatch.setattr("speechssl.analysis.abx.score.BLOCK", 2000)
    assert measured(items, features, settings) == pytest.approx(whole, abs=1e-12)
    monkeypatch.setattr("speechssl.analysis.abx.score.SQUARE", 5)
    assert measured(items, features, settings) == pytest.approx(whole, abs=1e-12)


def test_a_path_is_divided_by_its_cells_and_ties_take_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    for costs in (rng.random((7, 11)), rng.integers(0, 3, (9, 5)).astype(float), np.ones((1, 4)), np.zeros((4, 4))):
        block = torch.from_numpy(costs)
        spans = torch.tensor([[0, costs.shape[0]]]), torch.tensor([[0, costs.shape[1]]])
        assert float(path_means(block, *spans)) == pytest.approx(slow_path_mean(costs), abs=1e-12)


@pytest.mark.parametrize("speaker", ["within", "across"])
def test_perfect_classes_have_no_error_and_noise_is_at_chance(speaker: Literal["within", "across"]) -> None:
    items = tokens(400, seed=3)
    features = {f"s{s}": torch.zeros(100, 4) for s in range(3)}
    own = [
        AbxItem(f"{i.file}-{i.phone}", i.onset, i.offset, i.phone, i.before, i.after, i.speaker) for i in items
    ]  # each phone in a file of its own
    perfect = {f"s{s}-{p}": torch.eye(4)[k].repeat(100, 1) for s in range(3) for k, p in enumerate("abc")}
    settings = AbxSettings(speaker)
    assert measured(own, perfect, settings) == 0.0
    assert measured(own, perfect, settings, "euclidean") == 0.0
    assert measured(items, features, settings) == 0.5  # all alike: nothing but ties
    task = plan_abx(items, dict.fromkeys(features, 100), RATE, settings)
    noise = abx_error(task, features_of(items))
    assert noise.error == pytest.approx(0.5, abs=0.03)
    assert noise.low < noise.error < noise.high
    assert sum(noise.by_pair.values()) / len(noise.by_pair) == pytest.approx(noise.error, abs=1e-12)


def test_groups_and_speakers_of_x_are_drawn_alike_for_one_seed() -> None:
    items = tokens(300, seed=4)
    features = features_of(items)
    lengths = dict.fromkeys(features, 100)
    settings = AbxSettings("across", max_size_group=3, max_x_across=1)
    task = plan_abx(items, lengths, RATE, settings)
    again = plan_abx(items[::-1], lengths, RATE, settings)
    score = abx_error(task, features)
    assert abx_error(again, features).error == pytest.approx(score.error, abs=1e-12)
    assert all(np.diff(family.bounds).max() <= 3 for family in task.families)
    assert score.triples <= 27 * score.cells


def test_frames_are_those_whose_middle_lies_within() -> None:
    def span(onset: float, offset: float, last: bool = True) -> tuple[int, int]:
        return item_frames(AbxItem("f", onset, offset, "a", "b", "c", "s"), RATE, last=last)

    assert span(0.2925, 0.4725) == (15, 24)  # middles 0.31 ... 0.47 s
    assert span(0.2925, 0.4725, last=False) == (15, 23)
    assert span(0.07, 0.15) == (3, 8)  # both ends on a middle, which binary fractions miss
    assert span(0.071, 0.089) == (4, 4)  # none
    assert span(0.0, 0.009) == (0, 0)


def test_tokens_without_frames_are_counted_and_wrong_times_are_told() -> None:
    items = [*tokens(60, seed=5), AbxItem("s0", 0.501, 0.509, "a", "x", "z", "s0")]
    features = features_of(items)
    lengths = dict.fromkeys(features, 100)
    score = abx_error(plan_abx(items, lengths, RATE), features)
    assert (score.items, score.dropped) == (61, 1)
    with pytest.raises(SpeechsslError, match="times must be in seconds"):
        plan_abx([AbxItem("s0", 50.0, 60.0, "a", "x", "z", "s0")], lengths, RATE)
    with pytest.raises(SpeechsslError, match="no features of 's9'"):
        plan_abx([AbxItem("s9", 0.0, 1.0, "a", "x", "z", "s0")], lengths, RATE)
    with pytest.raises(SpeechsslError, match="all are of one speaker"):
        plan_abx([i for i in items if i.speaker == "s0"], lengths, RATE, AbxSettings("across"))
    with pytest.raises(SpeechsslError, match="sum to 1"):
        abx_error(plan_abx(items, lengths, RATE), features, distance="kl")
    with pytest.raises(SpeechsslError, match="not finite"):
        abx_error(plan_abx(items, lengths, RATE), {f: x / 0.0 for f, x in features.items()})


def test_item_files_come_back_as_they_were_and_bad_lines_are_named(tmp_path: Path) -> None:
    path, items = tmp_path / "a.item", tokens(5, seed=6)
    write_items(items, path)
    assert read_items(path) == items
    path.write_text("#file onset offset #phone prev-phone next-phone speaker\nf 0.5 0.4 a b c s\n")
    with pytest.raises(ManifestError, match=r"a\.item, line 2, must end after it begins"):
        read_items(path)
    path.write_text("#file onset offset #phone speaker\n")
    with pytest.raises(ManifestError, match="lacks prev-phone, next-phone"):
        read_items(path)


def test_items_of_an_alignment_have_a_phone_on_both_sides() -> None:
    spans = [("SIL", 0.0, 0.1), ("b", 0.1, 0.2), ("a", 0.2, 0.35), ("g", 0.35, 0.4), ("o", 0.4, 0.5), ("t", 0.6, 0.7)]
    phones = [Phone(*span) for span in spans]
    triphones = make_items("f", "s", phones, unit="triphone", silences={"SIL"})
    assert triphones == [
        AbxItem("f", 0.1, 0.4, "a", "b", "g", "s"),
        AbxItem("f", 0.2, 0.5, "g", "a", "o", "s"),
    ]  # between o and t is a gap
    assert make_items("f", "s", phones, unit="phoneme", silences={"SIL"})[0] == AbxItem(
        "f", 0.2, 0.35, "a", "b", "g", "s"
    )
