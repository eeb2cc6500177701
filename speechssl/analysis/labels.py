"""What is said when: phones and words of utterances, in seconds, whoever labelled them; and the labels of frames.

Reads lists in a corpus's manifest, Praat's TextGrid, NIST's CTM, ZeroSpeech's item files, and JSON lines of our own. A
frame has the label of the span that its centre lies in, see `speechssl.data.spans`.

T frames.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechssl.analysis.label_files import read_label_file
from speechssl.data.spans import SLACK, Span, label_frames, lay_out, parse_spans
from speechssl.errors import ManifestError
from speechssl.files import replacing
from speechssl.types import Utterance

KINDS = ("phone", "word")
FIELDS = {"phone": ("phones", "phone"), "word": ("words", "word")}
"""Kind -> what a manifest may call the list."""
SILENCE = frozenset(
    ["", "sil", "sp", "spn", "nsn", "pau", "epi", "h#", "<eps>", "<sil>", "<s>", "</s>", "<unk>", "[noise]"]
)
"""Labels, in lower case, of what is no phone and no word; such spans are left out."""
STRESSED = re.compile(r"([A-Z]{2})[012]")
"""ARPABET's vowels with stress, which is left out: 'AH0' and 'AH1' are one phone."""
UNITS = {50.0: "frames of 50 Hz", 100.0: "frames of 100 Hz", 1000.0: "milliseconds", 16000.0: "samples at 16 kHz"}
Tracks = Mapping[str, Sequence[Span]]
"""Utterance id -> its spans."""
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Labels:
    """The spans of utterances, by kind ('phone', 'word')."""

    tracks: Mapping[str, Tracks] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)
    """Kind -> what made them, for the page."""
    warnings: Sequence[str] = ()

    def of(self, kind: str) -> Tracks:
        """The spans of a kind; none where it has no labels."""
        return self.tracks.get(kind, {})

    def joined(self, other: "Labels") -> "Labels":
        """With the kinds that `other` has and this one lacks."""
        more = {k: v for k, v in other.tracks.items() if v and not self.of(k)}
        source = {**{k: other.source[k] for k in more}, **self.source}
        return Labels({**self.tracks, **more}, source, (*self.warnings, *other.warnings))


def labels_of_manifest(utterances: Sequence[Utterance], root: Path) -> Labels:
    """The lists of {start, end, value} that the manifest calls 'phones' and 'words'.

    Raises:
        ManifestError: an entry that is none.
    """
    tracks: dict[str, Tracks] = {}
    source = {}
    for kind, names in FIELDS.items():
        for name in names:
            listed = [u for u in utterances if isinstance(u.labels.get(name), list)]
            if listed:
                tracks[kind] = {u.id: parse_spans(u, name, root) for u in listed}
                source[kind] = f"'{name}' of the corpus's manifest"
                break
    return Labels(tracks, source)


def labels_of_files(specs: Iterable[str], utterances: Sequence[Utterance]) -> Labels:
    """Labels beside a corpus.

    Args:
        specs: '[phone=|word=]PATH': a TextGrid, a folder of them named <id>.TextGrid, a .ctm, .item or .jsonl.

    Raises:
        ManifestError: a file that can't be read, or that labels none of the utterances.
    """
    tracks: dict[str, dict[str, Sequence[Span]]] = {}
    source: dict[str, str] = {}
    known = {u.id for u in utterances}
    for spec in specs:
        kind, separator, rest = spec.partition("=")
        kind, path = (kind, Path(rest)) if separator and kind in KINDS else ("", Path(spec))
        found = read_label_file(path, kind)
        if not any(known & set(track) for track in found.values()):
            some = next((name for track in found.values() for name in track), None)
            remedy = f"it labels '{some}' and others" if some else "it labels nothing"
            raise ManifestError(
                f"{path} labels none of the {len(known)} utterances: {remedy}, but ids such as "
                f"'{next(iter(known), '')}' are wanted."
            )
        for name, track in found.items():
            tracks.setdefault(name, {}).update((i, spans) for i, spans in track.items() if i in known)
            source[name] = f"{source[name]}, {path.name}" if name in source else path.name
    return Labels(tracks, source)


def cleaned(labels: Labels, utterances: Sequence[Utterance], *, rate: float | None = None) -> Labels:
    """Labels in seconds, without silence and stress; what lies outside of its audio is left out and counted.

    Args:
        rate: how many of the labels' units of time are a second; None = they are seconds.

    Raises:
        ManifestError: they are in other units than `rate` says.
    """
    seconds = {u.id: u.duration for u in utterances if u.duration is not None}
    tracks: dict[str, Tracks] = {}
    warnings = [*labels.warnings]
    for kind, track in labels.tracks.items():
        scaled = {i: [_in_seconds(span, rate or 1.0) for span in spans] for i, spans in track.items()}
        _check_unit(scaled, seconds, kind=kind, source=labels.source[kind], rate=rate)
        kept: dict[str, list[Span]] = {}
        outside = 0
        for name, spans in scaled.items():
            end = seconds.get(name, np.inf)
            inside = [s for s in spans if 0 <= s.begin < s.end <= end + SLACK]
            outside += len(spans) - len(inside)
            kept[name] = [s._replace(value=_name(s.value, kind)) for s in inside if not _is_silence(s.value)]
        tracks[kind] = {i: spans for i, spans in kept.items() if spans}
        if outside:
            warnings.append(f"{outside} {kind} labels of {labels.source[kind]} lie outside of their audio: left out.")
    return replace(labels, tracks=tracks, warnings=warnings)


def _in_seconds(span: Span, rate: float) -> Span:
    return span if rate == 1.0 else span._replace(begin=span.begin / rate, end=span.end / rate)


def _check_unit(track: Tracks, seconds: Mapping[str, float], *, kind: str, source: str, rate: float | None) -> None:
    """Compares where labels end with how long audio is."""
    reach = {i: max(s.end for s in spans) / seconds[i] for i, spans in track.items() if spans and seconds.get(i)}
    if not reach:
        return
    middle = float(np.median(list(reach.values())))
    if middle > 1.5:
        true = middle * (rate or 1.0)
        unit = min(UNITS, key=lambda r: abs(np.log(r / true)))
        guess = f", as {UNITS[unit]} would" if abs(np.log(unit / true)) < 0.3 else ""
        example = next(iter(reach))
        raise ManifestError(
            f"The {kind} labels of {source} are not in {'seconds' if rate is None else f'units of {rate:g} Hz'}: those "
            f"of '{example}' end {reach[example]:.3g} times as late as its {seconds[example]:g} s of audio{guess}; "
            f"give `--label-rate {unit:g}`, or labels in seconds."
        )
    if middle < 0.05:
        raise ManifestError(
            f"The {kind} labels of {source} end within the first {100 * middle:.2g} % of their audio: if they are in "
            "seconds, leave out `--label-rate`; else give the rate that they are at."
        )


def _is_silence(value: object) -> bool:
    text = str(value).strip().lower()
    return text in SILENCE or text.startswith(("+", "["))


def _name(value: object, kind: str) -> str:
    text = str(value).strip()
    if kind == "phone" and (match := STRESSED.fullmatch(text)):
        return match[1]
    return text


def label_set(track: Tracks, *, fewest: int = 1) -> list[str]:
    """The labels that occur `fewest` times or more, in the order of the alphabet."""
    names, counts = np.unique([s.value for spans in track.values() for s in spans] or [""], return_counts=True)
    return [str(n) for n, c in zip(names, counts, strict=True) if c >= fewest and n]


def frame_codes(spans: Sequence[Span], names: Mapping[str, int], *, frames: int, frame_rate: float) -> Integers:
    """The label of each frame: its number in `names`, -1 where there is none; (T,).

    Args:
        spans: of one utterance, seconds.
        frames: T.
        frame_rate: Hz.
    """
    codes = np.full(frames, -1, dtype=np.int64)
    known = [s for s in spans if s.value in names]
    if known:
        laid = lay_out(known, [names[s.value] for s in known], "An utterance")
        places, values = label_frames(laid, frames=frames, frame_rate=frame_rate)
        codes[places] = values.astype(np.int64)
    return codes


def write_labels(labels: Labels, path: Path) -> None:
    """Writes JSON lines, one utterance each: what `labels_of_files` reads."""
    names = dict.fromkeys(i for track in labels.tracks.values() for i in track)
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        for name in names:
            entry: dict[str, object] = {"id": name}
            for kind in labels.tracks:
                spans = labels.of(kind).get(name, ())
                entry[FIELDS[kind][0]] = [
                    {"start": round(s.begin, 4), "end": round(s.end, 4), "value": s.value} for s in spans
                ]
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
