"""Item files of the ZeroSpeech challenges: which stretches of which recordings are compared.

A text file; its first line names the columns, each other line is a token, its columns divided by blanks:

    #file onset offset #phone prev-phone next-phone speaker
    6295-244435-0009 0.2925 0.4725 IH L NG 6295

Times are in seconds. A triphone item spans three phones and is named by the one in the middle, with the other two as
its context; a phoneme item spans that phone alone.

Reference: libri-light `eval/ABX_src/abx_iterators.py` (seven columns, the first line unread) and fastabx's
documentation of item files (columns by name). Paper: Nguyen et al. 2020 (ZeroSpeech 2021), sec. 2.1, arXiv:2011.11588.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from speechssl.errors import ManifestError
from speechssl.files import replacing
from speechssl.text_files import read_lines

COLUMNS = ("#file", "onset", "offset", "#phone", "prev-phone", "next-phone", "speaker")
Unit = Literal["triphone", "phoneme"]


@dataclass(frozen=True)
class AbxItem:
    """One token: a stretch of a recording, what is said in it, around it, and by whom."""

    file: str
    """Id of the utterance whose features it is a part of."""
    onset: float
    """Seconds."""
    offset: float
    """Seconds."""
    phone: str
    before: str
    after: str
    speaker: str


@dataclass(frozen=True)
class Phone:
    """A phone of an alignment."""

    label: str
    start: float
    """Seconds."""
    end: float
    """Seconds."""


def read_items(path: Path) -> list[AbxItem]:
    """Reads an item file; further columns are passed over.

    Raises:
        ManifestError: missing, empty, without one of the columns, or a line that doesn't fit.
    """
    lines = read_lines(path)
    header = next(lines, None)
    if header is None:
        raise ManifestError(f"The item file {path} is empty: its first line must be '{' '.join(COLUMNS)}'.")
    names = header[1].split()
    if lacking := [name for name in COLUMNS if name not in names]:
        raise ManifestError(f"{header[0]} must name the columns '{' '.join(COLUMNS)}', but lacks {', '.join(lacking)}.")
    places = [names.index(name) for name in COLUMNS]
    found = [_item(where, line.split(), places, len(names)) for where, line in lines]
    if not found:
        raise ManifestError(f"The item file {path} has no line but the first: write a token per line.")
    return found


def _item(where: str, parts: list[str], places: list[int], count: int) -> AbxItem:
    if len(parts) != count:
        raise ManifestError(f"{where} must have {count} columns as the first line has, but has {len(parts)}: mend it.")
    file, onset, offset, phone, before, after, speaker = (parts[place] for place in places)
    try:
        item = AbxItem(file, float(onset), float(offset), phone, before, after, speaker)
    except ValueError:
        raise ManifestError(f"{where} must have times in seconds, but has '{onset}' and '{offset}': mend it.") from None
    if not 0 <= item.onset < item.offset < math.inf:
        raise ManifestError(f"{where} must end after it begins, at 0 or later, but has {onset} and {offset}: mend it.")
    return item


def write_items(items: Iterable[AbxItem], path: Path) -> None:
    """Writes an item file, whole or not at all.

    Raises:
        ManifestError: a name with a blank in it, which would be two columns.
    """
    lines = [" ".join(COLUMNS)]
    for item in items:
        names = (item.file, item.phone, item.before, item.after, item.speaker)
        if bad := next((name for name in names if len(name.split()) != 1), None):
            raise ManifestError(f"'{bad}' can't stand in an item file: names must have no blanks, and not be empty.")
        times = f"{item.onset!r} {item.offset!r}"
        lines.append(f"{item.file} {times} {item.phone} {item.before} {item.after} {item.speaker}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_items(
    file: str, speaker: str, phones: Sequence[Phone], *, unit: Unit, silences: Collection[str] = ()
) -> list[AbxItem]:
    """The items of an utterance from its alignment: each phone that has one before and one after it.

    Args:
        phones: in order of time; neighbours must touch, or there is no context between them.
        unit: 'triphone' spans the three phones, 'phoneme' the middle one.
        silences: labels that are neither compared nor context.
    """
    found = []
    for before, phone, after in zip(phones, phones[1:], phones[2:], strict=False):
        if any(p.label in silences for p in (before, phone, after)):
            continue
        if not (_touch(before, phone) and _touch(phone, after)):
            continue
        first, last = (before, after) if unit == "triphone" else (phone, phone)
        found.append(AbxItem(file, first.start, last.end, phone.label, before.label, after.label, speaker))
    return found


def _touch(left: Phone, right: Phone) -> bool:
    return abs(left.end - right.start) < 1e-3  # rounding of written times


def item_frames(item: AbxItem, frame_rate: float, *, last: bool = True) -> tuple[int, int]:
    """The frames of an item: those whose middle (i + 1/2) / `frame_rate` lies within it, ends included.

    Computed in fractions of the written decimals, so that no rounding moves an end by a frame.

    Args:
        frame_rate: Hz.
        last: False leaves out the last one, as libri-light does by oversight and the figures of ZeroSpeech 2021 have
            it; fastabx counts it.

    Returns:
        First frame, and the one after the last; equal where there is none.
    """
    rate, half = Fraction(repr(frame_rate)), Fraction(1, 2)
    first = math.ceil(Fraction(repr(item.onset)) * rate - half)
    end = math.floor(Fraction(repr(item.offset)) * rate - half) + (1 if last else 0)
    return max(first, 0), max(end, first, 0)
