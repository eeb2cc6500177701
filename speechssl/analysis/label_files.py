"""Files of labels: Praat's TextGrid, NIST's CTM, ZeroSpeech's item files, JSON lines.

Each reader returns kind ('phone', 'word') -> utterance id -> spans, whose times are as the file has them.
"""

import json
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

from speechssl.analysis.abx.items import read_items
from speechssl.data.spans import Span
from speechssl.errors import ManifestError
from speechssl.text_files import read_lines

Found = dict[str, dict[str, list[Span]]]
TOKEN = re.compile(r'"((?:[^"]|"")*)"|([-+]?\d[\d.eE+-]*)|([^\s"]+)')
"""A text in quotes, a number, or a word; only the first two count in a TextGrid."""


def read_label_file(path: Path, kind: str = "") -> Found:
    """Reads a file of labels, or a folder of TextGrids.

    Args:
        kind: 'phone' or 'word', what a CTM file holds; '' = words, as CTM was made for. TextGrids say by the names of
            their tiers, item files hold phones.

    Raises:
        ManifestError: missing, malformed, or of no known format.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() == ".textgrid")
        if not files:
            raise ManifestError(f"The folder {path} holds no .TextGrid: name a folder of <id>.TextGrid files.")
        joined: Found = {}
        for file in files:
            for tier, track in read_text_grid(file).items():
                joined.setdefault(tier, {}).update(track)
        return _of_kind(joined, kind)
    if not path.is_file():
        raise ManifestError(f"The labels {path} do not exist: check the path.")
    readers: dict[str, Callable[[Path], Found]] = {
        ".textgrid": read_text_grid,
        ".ctm": lambda p: read_ctm(p, kind or "word"),
        ".item": read_phones_of_items,
        ".jsonl": read_json_lines,
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise ManifestError(f"{path} is none of .TextGrid, .ctm, .item and .jsonl: convert it to one of these.")
    return _of_kind(readers[suffix](path), kind)


def _of_kind(found: Found, kind: str) -> Found:
    return {k: v for k, v in found.items() if not kind or k == kind}


def read_text_grid(path: Path) -> Found:
    """Praat's text format, long or short; the tiers whose names hold 'phone' and 'word', of intervals.

    Both forms have the same texts and numbers in the same order, with and without words between them.
    """
    raw = path.read_bytes()
    wide = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = raw.decode("utf-16" if wide else "utf-8-sig")
        return _tiers(_tokens(text), path.stem)
    except (UnicodeDecodeError, StopIteration, RuntimeError, ValueError) as error:
        raise ManifestError(f"{path} is no TextGrid that can be read ({error}): save it from Praat as text.") from error


def _tokens(text: str) -> Iterator[str | float]:
    for match in TOKEN.finditer(re.sub(r"\[\d*\]:?", " ", text)):
        if match[1] is not None:
            yield match[1].replace('""', '"')
        elif match[2] is not None:
            yield float(match[2])


def _tiers(tokens: Iterator[str | float], name: str) -> Found:
    header = [next(tokens, None) for _ in range(5)]  # "ooTextFile", "TextGrid", begin, end, how many tiers
    if header[:2] != ["ooTextFile", "TextGrid"] or not isinstance(header[4], float):
        raise ValueError("it does not begin as one")
    found: Found = {}
    for _ in range(int(header[4])):
        form, title, _, _, size = (next(tokens) for _ in range(5))
        width = 3 if form == "IntervalTier" else 2
        rows = [[next(tokens) for _ in range(width)] for _ in range(int(size))]
        kind = next((k for k in ("phone", "word") if k in str(title).lower()), None)
        if kind is not None and width == 3 and kind not in found:
            found[kind] = {name: [Span(float(b), float(e), str(value)) for b, e, value in rows]}
    return found


def read_ctm(path: Path, kind: str) -> Found:
    """'<id> <channel> <begin> <duration> <label> [<confidence>]' in each line; ';;' begins a remark."""
    track: dict[str, list[Span]] = {}
    for where, line in read_lines(path):
        if line.startswith(";;"):
            continue
        parts = line.split()
        try:
            begin, seconds = float(parts[2]), float(parts[3])
            track.setdefault(parts[0], []).append(Span(begin, begin + seconds, parts[4]))
        except (IndexError, ValueError) as error:
            raise ManifestError(
                f"{where} must be '<id> <channel> <begin> <duration> <label>', but is '{line}'."
            ) from error
    return {kind: track}


def read_phones_of_items(path: Path) -> Found:
    """Phones of ZeroSpeech's item file.

    An item of triphones runs over three phones, but is labelled by its middle one, whose place is not told: where items
    overlap, the middle third of each is taken, a choice of ours.
    """
    track: dict[str, list[Span]] = {}
    for item in read_items(path):
        track.setdefault(item.file, []).append(Span(item.onset, item.offset, item.phone))
    for name, spans in track.items():
        spans.sort(key=lambda s: s.begin)
        if any(a.end > b.begin + 1e-6 for a, b in pairwise(spans)):
            track[name] = [s._replace(begin=(2 * s.begin + s.end) / 3, end=(s.begin + 2 * s.end) / 3) for s in spans]
    return {"phone": track}


def read_json_lines(path: Path) -> Found:
    """{"id", "phones": [{"start", "end", "value"}, ...], "words": [...]} in each line."""
    found: Found = {"phone": {}, "word": {}}
    for where, line in read_lines(path):
        try:
            entry = json.loads(line)
            for kind, name in (("phone", "phones"), ("word", "words")):
                if entry.get(name):
                    spans = [Span(float(s["start"]), float(s["end"]), str(s["value"])) for s in entry[name]]
                    found[kind][str(entry["id"])] = spans
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ManifestError(
                f'{where} must be {{"id", "phones": [{{"start", "end", "value"}}, ...]}} ({error}).'
            ) from error
    return {kind: track for kind, track in found.items() if track}
