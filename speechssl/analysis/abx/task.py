"""Which tokens an ABX measure compares: cells of A, B and X, gathered so that no pair is compared twice.

X and A are tokens of one phone, B of another. Within speakers all three are of one speaker; across speakers A and B are
of one and X is of another. With the context 'within' the phones before and after are the same for all three, with 'any'
they may be anything, for which items of single phones are meant. A cell is a phone of A and X, a phone of B, a context,
and the speakers.

All cells of a context and a speaker of A and B make a *family*: its tokens are the columns of one table of distances,
of which cells are rectangles. Within speakers its rows are the same tokens, across speakers the X of the others.

Groups larger than `max_size_group` are drawn once, and are the same tokens in all their cells; likewise the speakers of
X are drawn once for each A. libri-light draws anew for each cell, fastabx alike for all groups of one size: the same
measure of another sample.

Reference: libri-light `eval/ABX_src/abx_iterators.py`; zerospeech-libriabx2 for 'any'; fastabx `src/fastabx/cell.py`.
Papers: Schatz et al. 2013, "Evaluating speech features with the minimal-pair ABX task"; Hallap, Dupoux and Dunbar 2022,
"Evaluating context-invariance in unsupervised speech representations", arXiv:2210.15775, for 'any'; Poli et al. 2025,
"fastabx", arXiv:2505.02692.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from speechssl.analysis.abx.items import AbxItem, item_frames
from speechssl.errors import ConfigError, SpeechsslError

Integers = NDArray[np.int64]
BEYOND = 1.0
"""Seconds by which a token may begin after the end of its features; more means that the times are of something else."""


@dataclass(frozen=True)
class AbxSettings:
    """Which condition, and how much of it; the sizes are those of libri-light and ZeroSpeech 2021."""

    speaker: Literal["within", "across"] = "within"
    context: Literal["within", "any"] = "within"
    max_size_group: int | None = 10
    """Most tokens of a phone, context and speaker; None = all."""
    max_x_across: int | None = 5
    """Most speakers of X for an A, across speakers; None = all."""
    last_frame: bool = True
    """See `item_frames`."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("max_size_group", 2), ("max_x_across", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"`{name}` must be >= {least}, or None for all, but is {value}.")


@dataclass(frozen=True)
class Family:
    """The cells of one context and one speaker of A and B."""

    speaker: int
    columns: Integers
    """(n,) tokens of A and B, those of a phone side by side."""
    phones: Integers
    """(P,) numbers of the phones, in the order of the columns."""
    bounds: Integers
    """(P + 1,) first column of each phone, and the end of the last."""
    rows: Integers
    """(m,) tokens of X, group by group; equal to `columns` within speakers."""
    group_of_row: Integers
    """(m,) each group of X has a phone and a speaker."""
    phone_of_group: Integers
    """(G,) the place of its phone in `phones`."""

    @property
    def square(self) -> bool:
        """Whether rows and columns are the same."""
        return self.rows is self.columns


@dataclass(frozen=True)
class AbxTask:
    """The comparisons to be made of some items, whatever the features of them are."""

    settings: AbxSettings
    phones: tuple[str, ...]
    speakers: tuple[str, ...]
    frames: Mapping[str, Integers]
    """File -> which of its frames are needed, ascending; end to end they are what `starts` counts."""
    starts: Integers
    """(tokens,) first frame."""
    lengths: Integers
    """(tokens,) frames, >= 1."""
    families: tuple[Family, ...]
    items: int
    """That were given."""
    dropped: int
    """Of these, those that hold no frame."""


def plan_abx(
    items: Sequence[AbxItem], frames: Mapping[str, int], frame_rate: float, settings: AbxSettings = AbxSettings()
) -> AbxTask:
    """Gathers the cells of a condition.

    Args:
        items: tokens; see `read_items` and `make_items`.
        frames: file -> number of its frames.
        frame_rate: Hz.

    Returns:
        What `abx_error` takes, for any features with these frames. Tokens end where the features end; those without a
        frame are left out and counted.

    Raises:
        SpeechsslError: a file without features, times far beyond the features, or no cell at all.
    """
    if not frame_rate > 0:
        raise ConfigError(f"`frame_rate` must be positive, but is {frame_rate}: it is in Hz.")
    spans = [_span(item, frames, frame_rate, settings) for item in items]
    kept = [number for number, (first, end) in enumerate(spans) if end > first]
    groups = _group(items, kept, settings)
    speakers = sorted({speaker for _, speaker, _ in groups})
    phones = sorted({phone for _, _, phone in groups})
    families = _families(groups, {s: i for i, s in enumerate(speakers)}, {p: i for i, p in enumerate(phones)}, settings)
    if not families:
        raise SpeechsslError(_why_empty(settings, len(kept), speakers, phones))
    used = np.unique(np.concatenate([np.concatenate((f.columns, f.rows)) for f in families]))
    needed, starts = _needed_frames(items, spans, used)
    lengths = np.array([end - first for first, end in spans], dtype=np.int64)
    return AbxTask(
        settings, tuple(phones), tuple(speakers), needed, starts, lengths, families, len(items), len(items) - len(kept)
    )


def _span(item: AbxItem, frames: Mapping[str, int], frame_rate: float, settings: AbxSettings) -> tuple[int, int]:
    if item.file not in frames:
        raise SpeechsslError(f"There are no features of '{item.file}', which the items name: extract them too.")
    first, end = item_frames(item, frame_rate, last=settings.last_frame)
    size = frames[item.file]
    if first > size + BEYOND * frame_rate:
        raise SpeechsslError(
            f"A token of '{item.file}' begins at {item.onset} s, but its features end at {size / frame_rate:.2f} s: "
            "times must be in seconds, and `frame_rate` in Hz."
        )
    return min(first, size), min(end, size)


Groups = dict[tuple[tuple[str, str], str, str], Integers]
"""(context, speaker, phone) -> tokens."""


def _group(items: Sequence[AbxItem], kept: Sequence[int], settings: AbxSettings) -> Groups:
    found: dict[tuple[tuple[str, str], str, str], list[int]] = defaultdict(list)
    for number in kept:
        item = items[number]
        context = (item.before, item.after) if settings.context == "within" else ("", "")
        found[context, item.speaker, item.phone].append(number)
    most, generator = settings.max_size_group, torch.Generator().manual_seed(settings.seed)
    groups: Groups = {}
    for key in sorted(found):
        tokens = np.array(sorted(found[key], key=lambda n: (items[n].file, items[n].onset)), dtype=np.int64)
        if most is not None and len(tokens) > most:
            tokens = np.sort(tokens[torch.randperm(len(tokens), generator=generator)[:most].numpy()])
        groups[key] = tokens
    return groups


def _families(
    groups: Groups, speakers: Mapping[str, int], phones: Mapping[str, int], settings: AbxSettings
) -> tuple[Family, ...]:
    members: dict[tuple[tuple[str, str], str], list[str]] = defaultdict(list)
    voices: dict[tuple[tuple[str, str], str], list[str]] = defaultdict(list)
    for context, speaker, phone in groups:
        members[context, speaker].append(phone)
        voices[context, phone].append(speaker)
    generator = torch.Generator().manual_seed(settings.seed)
    found = []
    for (context, speaker), own in members.items():
        if len(own) < 2:
            continue
        tokens = [groups[context, speaker, phone] for phone in own]
        columns, sizes = np.concatenate(tokens), np.array([len(t) for t in tokens])
        others: list[tuple[int, Integers]] = []
        if settings.speaker == "across":
            for place, phone in enumerate(own):
                chosen = _draw([s for s in voices[context, phone] if s != speaker], settings.max_x_across, generator)
                others += [(place, groups[context, s, phone]) for s in chosen]
            if not others:
                continue
            rows = np.concatenate([x for _, x in others])
            group_of_row = np.repeat(np.arange(len(others)), [len(x) for _, x in others])
            phone_of_group = np.array([place for place, _ in others])
        else:
            if sizes.max() < 2:
                continue
            rows, group_of_row, phone_of_group = columns, np.repeat(np.arange(len(own)), sizes), np.arange(len(own))
        numbers, bounds = np.array([phones[p] for p in own]), np.concatenate(([0], sizes.cumsum()))
        found.append(Family(speakers[speaker], columns, numbers, bounds, rows, group_of_row, phone_of_group))
    return tuple(found)


def _draw(names: list[str], most: int | None, generator: torch.Generator) -> list[str]:
    if most is None or len(names) <= most:
        return names
    return [names[i] for i in torch.randperm(len(names), generator=generator)[:most].tolist()]


def _needed_frames(
    items: Sequence[AbxItem], spans: Sequence[tuple[int, int]], used: Integers
) -> tuple[dict[str, Integers], Integers]:
    by_file: dict[str, list[int]] = defaultdict(list)
    for number in used.tolist():
        by_file[items[number].file].append(number)
    starts, base = np.full(len(items), -1, dtype=np.int64), 0
    needed = {}
    for file, numbers in by_file.items():
        covered = np.zeros(max(spans[n][1] for n in numbers), dtype=bool)
        for number in numbers:
            covered[slice(*spans[number])] = True
        place = covered.cumsum() - 1 + base
        starts[numbers] = place[[spans[n][0] for n in numbers]]
        needed[file] = np.flatnonzero(covered)
        base += len(needed[file])
    return needed, starts


def _why_empty(settings: AbxSettings, kept: int, speakers: Sequence[str], phones: Sequence[str]) -> str:
    begin = f"None of {kept} tokens can be compared: "
    if settings.speaker == "across" and len(speakers) < 2:
        return begin + "all are of one speaker, and across speakers takes two."
    if len(phones) < 2:
        return begin + "all are of one phone, and a comparison takes two."
    where = "context and speaker" if settings.context == "within" else "speaker"
    repeated = "said twice" if settings.speaker == "within" else "said by two speakers"
    return begin + f"no {where} has two phones of which one is {repeated}; give more items, or the context 'any'."
