"""Discrete units of speech: how many bits they take, how many are used, how long they last, and what they keep of a
voice.

Conventions ----------- The units of an utterance are codes, (T,) or (T, G) with G codebooks, from 0 on, at a frame rate
in Hz. A *run* is a stretch of equal frames; *deduplicated* units are one per run, with the run's length beside it.
Entropies are of how often codes occur, without their order, in bits.

Measures -------- * Bitrate: codes per second times the entropy of a code, B = N / D * H(s). Of deduplicated units N
counts runs ('segment bitrate'), and with the entropy of their lengths added they can be undone ('factored'). With
several codebooks their entropies are added up, as if they were coded one by one. Dunbar et al. 2019 (ZeroSpeech 2019),
sec. 2.3, arXiv:1904.11469; the two of runs as Wei-Ning Hsu's script for the same challenge has them. * Perplexity of a
codebook, 2 ** H, and its share that is used at all. * Run lengths in frames: mean, median, largest. * Unit edit
distance: between deduplicated units of one text by two speakers, edits over the longer one's units, so 0 = the units
say nothing of the speaker, 1 = they have nothing in common. Beside it stands the distance of different texts by two
speakers, which is what units without any content have. Gat et al. 2022, arXiv:2209.15483, divide edits between an
utterance and itself disturbed by the frames of the first; between speakers neither comes first, so the longer one
counts: a choice of ours.

What units tell of phones, words and speakers (purity, normalised mutual information) is
`speechssl.analysis.information`.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from speechssl.errors import SpeechsslError
from speechssl.metric.interval import mean_interval

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class UnitStatistics:
    """What a set of units takes and uses."""

    utterances: int
    frames: int
    runs: int
    seconds: float
    codebooks: int
    entries: int
    """Of each codebook."""
    used: float
    """Share of the entries that occur, over all codebooks."""
    perplexity: float
    """Of a codebook, their mean: how many entries are in use, evenly counted."""
    bitrate: float
    """Bits per second of the codes of all frames."""
    segment_bitrate: float
    """Bits per second of deduplicated units."""
    factored_bitrate: float
    """Bits per second of deduplicated units and their lengths."""
    nominal_bitrate: float
    """Bits per second, were all entries equally frequent: frame rate * G * log2(V)."""
    mean_run: float
    """Frames."""
    median_run: float
    longest_run: int
    run_lengths: tuple[int, ...]
    """How many runs are of 1, 2, ... frames."""


@dataclass(frozen=True)
class UnitEditDistance:
    """How far apart the units of one text by two speakers are."""

    distance: float
    """0 = equal, 1 = nothing in common."""
    low: float
    """Where the 95 % interval begins, by the bootstrap over texts."""
    high: float
    texts: int
    pairs: int
    control: float
    """The same of different texts by different speakers; NaN where there are none."""


def deduplicate(codes: Tensor) -> tuple[Tensor, Tensor]:
    """One unit per run: (T,) or (T, G) -> units (U,) or (U, G), and lengths of the runs in frames, (U,) int64."""
    units, lengths = torch.unique_consecutive(codes, dim=0, return_counts=True)
    return units, lengths


def unit_statistics(codes: Mapping[str, Tensor], *, frame_rate: float, entries: int) -> UnitStatistics:
    """Measures the units of some utterances.

    Args:
        codes: id -> (T,) or (T, G) integers from 0 to `entries` - 1.
        frame_rate: Hz.
        entries: V of each codebook.

    Raises:
        SpeechsslError: no frames, or codes that are not so.
    """
    arrays = _checked(codes, entries)
    groups = next(iter(arrays.values())).size(1)
    frame_counts, run_counts = (np.zeros((groups, entries), dtype=np.int64) for _ in range(2))
    lengths = []
    for array in arrays.values():
        units, length = deduplicate(array)
        frame_counts += _count(array, entries)
        run_counts += _count(units, entries)
        lengths.append(length)
    every = torch.cat(lengths).numpy()
    frames, runs = int(every.sum()), len(every)
    seconds = frames / frame_rate
    entropies = np.array([entropy(row) for row in frame_counts])
    segment = runs / seconds * sum(entropy(row) for row in run_counts)
    by_length = np.bincount(every)
    return UnitStatistics(
        utterances=len(arrays),
        frames=frames,
        runs=runs,
        seconds=seconds,
        codebooks=groups,
        entries=entries,
        used=float((frame_counts > 0).mean()),
        perplexity=float((2.0**entropies).mean()),
        bitrate=frame_rate * float(entropies.sum()),
        segment_bitrate=segment,
        factored_bitrate=segment + runs / seconds * entropy(by_length),
        nominal_bitrate=frame_rate * groups * math.log2(entries),
        mean_run=frames / runs,
        median_run=float(np.median(every)),
        longest_run=int(every.max()),
        run_lengths=tuple(by_length[1:].tolist()),
    )


def entropy(counts: Counts) -> float:
    """Of a histogram, in bits."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def unit_edit_distance(
    codes: Mapping[str, Tensor],
    texts: Mapping[str, str],
    speakers: Mapping[str, str],
    *,
    max_pairs: int = 20,
    seed: int = 0,
) -> UnitEditDistance:
    """Compares what different speakers' saying of the same text becomes.

    Args:
        codes: id -> (T,) or (T, G), of all frames; they are deduplicated here.
        texts: id -> what is said, compared as it stands.
        speakers: id -> who says it.
        max_pairs: most pairs of one text, drawn at random.
        seed: of what is drawn, the control and the interval.

    Raises:
        SpeechsslError: no text is said by two speakers.
    """
    units = sequences({name: codes[name] for name in sorted(codes) if name in texts and name in speakers})
    by_text = defaultdict(list)
    for name in units:
        by_text[texts[name]].append(name)
    rng = np.random.default_rng(seed)
    values: list[float] = []
    owners: list[int] = []
    for number, text in enumerate(sorted(by_text)):
        pairs = [(a, b) for a, b in combinations(by_text[text], 2) if speakers[a] != speakers[b]]
        if len(pairs) > max_pairs:
            pairs = [pairs[i] for i in sorted(rng.choice(len(pairs), max_pairs, replace=False).tolist())]
        values += [edit_distance(units[a], units[b]) for a, b in pairs]
        owners += [number] * len(pairs)
    if not values:
        raise SpeechsslError("No text is said by two speakers: a unit edit distance between speakers needs one.")
    counts = np.bincount(owners)
    means = np.bincount(owners, weights=values)[counts > 0] / counts[counts > 0]  # texts count alike
    low, high = mean_interval(means, seed=seed)
    control = _control(units, texts, speakers, pairs=len(values), rng=rng)
    return UnitEditDistance(float(means.mean()), low, high, len(means), len(values), control)


def _control(
    units: Mapping[str, Sequence[int]],
    texts: Mapping[str, str],
    speakers: Mapping[str, str],
    *,
    pairs: int,
    rng: np.random.Generator,
) -> float:
    names, values = list(units), []
    for a, b in rng.integers(len(names), size=(10 * pairs, 2)).tolist():
        first, second = names[a], names[b]
        if texts[first] != texts[second] and speakers[first] != speakers[second]:
            values.append(edit_distance(units[first], units[second]))
        if len(values) == pairs:
            break
    return float(np.mean(values)) if values else math.nan


def edit_distance(first: Sequence[int], second: Sequence[int]) -> float:
    """Substitutions, insertions and deletions over the longer sequence's units, within [0, 1]."""
    return float(Levenshtein.normalized_distance(first, second))


def sequences(codes: Mapping[str, Tensor], *, dedup: bool = True) -> dict[str, list[int]]:
    """Units as integers: id -> (U,), one per run unless `dedup` is False; of several codebooks one number a frame."""
    if not codes:
        return {}
    arrays = {name: _columns(array) for name, array in codes.items()}
    if next(iter(arrays.values())).size(1) > 1:
        numbers = torch.unique(torch.cat(list(arrays.values())), dim=0, return_inverse=True)[1]
        parts = torch.split(numbers, [len(array) for array in arrays.values()])
        arrays = {name: part[:, None] for name, part in zip(arrays, parts, strict=True)}
    return {name: (deduplicate(a)[0] if dedup else a)[:, 0].tolist() for name, a in arrays.items()}


def _columns(codes: Tensor) -> Tensor:
    return (codes if codes.dim() == 2 else codes[:, None]).cpu()


def _checked(codes: Mapping[str, Tensor], entries: int) -> dict[str, Tensor]:
    arrays = {name: _columns(array).long() for name, array in codes.items() if len(array)}
    if not arrays:
        raise SpeechsslError("There are no units to measure: give codes of an utterance at least.")
    if len({array.size(1) for array in arrays.values()}) > 1:
        raise SpeechsslError("All utterances must have codes of as many codebooks, but some differ.")
    for name, array in arrays.items():
        if int(array.min()) < 0 or int(array.max()) >= entries:
            raise SpeechsslError(
                f"The codes of '{name}' must lie in 0..{entries - 1}, but range {int(array.min())}..{int(array.max())}."
            )
    return arrays


def _count(array: Tensor, entries: int) -> Counts:
    groups = array.size(1)
    places = array + torch.arange(groups) * entries
    counts: Counts = torch.bincount(places.flatten(), minlength=groups * entries).view(groups, entries).numpy()
    return counts
