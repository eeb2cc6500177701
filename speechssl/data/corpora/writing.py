"""Writes the manifests and lists of a corpus, line by line, so that there may be millions."""

import gzip
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechssl.data.corpora.base import Item
from speechssl.errors import ManifestError
from speechssl.files import replacing

ROUNDING = 0.1
"""Seconds by which a stretch may pass the end of its file: lists round, decoders trim."""


@dataclass(frozen=True)
class Length:
    """What a header says."""

    samples: int
    sample_rate: int


@dataclass(frozen=True)
class Written:
    """What the manifests hold."""

    fingerprint: str
    """Hash of the cuts, without the folder of the audio: equal corpora, equal fingerprint."""
    hashes: Mapping[str, str]
    """Split -> SHA-256 of its manifest's bytes."""
    splits: Mapping[str, Mapping[str, Any]]


def write_manifests(
    root: Path, splits: Mapping[str, Sequence[Item]], lengths: Mapping[str, Length], source: Path
) -> Written:
    """Writes manifests/<split>.jsonl.gz of the items whose files are all in `lengths`.

    Raises:
        ManifestError: a split without any, or two items of one with the same id.
    """
    folder = root / "manifests"
    for old in folder.glob("*.jsonl.gz"):
        old.unlink()
    digest = hashlib.sha256()
    hashes, summaries = {}, {}
    for split, items in splits.items():
        path = folder / f"{split}.jsonl.gz"
        digest.update(f"{split}\n".encode())
        tally = _Tally()
        # no time stamp and no name in the archive: equal corpora, equal files
        with (
            replacing(path) as partial,
            partial.open("wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as file,
        ):
            for cut in (c for item in items if is_whole(item, lengths) for c in _cuts(item, lengths[item.path])):
                tally.add(cut)
                line = json.dumps(cut, ensure_ascii=False, sort_keys=True) + "\n"
                digest.update(relative(line, source).encode())
                file.write(line.encode())
        if not tally.utterances:
            raise ManifestError(f"No utterance of '{split}' is left below {source}: see --audit for what is missing.")
        hashes[split], summaries[split] = hash_file(path), tally.summary()
    return Written(digest.hexdigest(), hashes, summaries)


def stretch(item: Item, length: Length) -> tuple[int, int]:
    """The first sample of an item and how many it has.

    Raises:
        ManifestError: it passes the end of the file by more than lists round.
    """
    rate = length.sample_rate
    first = round(item.start * rate)
    wanted = length.samples - first if item.duration is None else round(item.duration * rate)
    if wanted < 1 or first >= length.samples or first + wanted > length.samples + ROUNDING * rate:
        raise ManifestError(
            f"{item.path} is {length.samples / rate:.2f} s long, but '{item.id}' should be {item.start:.2f} s to "
            f"{item.start + wanted / rate:.2f} s of it."
        )
    return first, min(wanted, length.samples - first)


def is_whole(item: Item, lengths: Mapping[str, Length]) -> bool:
    """Whether an item can be written."""
    return all(path in lengths for path in item.files()) and not why_unfit(item, lengths)


def why_unfit(item: Item, lengths: Mapping[str, Length]) -> str:
    """Why an item whose files can be read does not hold what its lists say; '' = it does."""
    own = lengths[item.path]
    try:
        _, count = stretch(item, own)
    except ManifestError as error:
        return str(error)
    if item.pieces is not None and count < round(item.pieces * own.sample_rate):
        return f"{item.path} is shorter than the {item.pieces} s of a piece."
    for partner in item.partners:
        if lengths[partner] != own:
            return (
                f"{partner} holds {lengths[partner].samples} samples at {lengths[partner].sample_rate} Hz, but must be "
                f"as long as {item.path} with {own.samples} at {own.sample_rate} Hz."
            )
    return ""


def _cuts(item: Item, length: Length) -> Iterator[dict[str, Any]]:
    """The item as Lhotse's MonoCut in JSON: one, or one per piece."""
    first, count = stretch(item, length)
    size = count if item.pieces is None else round(item.pieces * length.sample_rate)
    for number in range(count // size):
        name = item.id if item.pieces is None else f"{item.id}-{number:03d}"
        yield _cut(name, item, length, first + number * size, size)


def _cut(name: str, item: Item, length: Length, first: int, count: int) -> dict[str, Any]:
    rate = length.sample_rate
    own = {key: item.labels[key] for key in ("text", "speaker", "language", "gender") if key in item.labels}
    custom = {key: value for key, value in item.labels.items() if key not in own}
    supervision = {
        "id": name,
        "recording_id": item.id,
        "start": 0.0,
        "duration": count / rate,
        "channel": 0,
        **own,
        **({"custom": custom} if custom else {}),
    }
    recording = {
        "id": item.id,
        "sources": [{"type": "file", "channels": [0], "source": item.path}],
        "sampling_rate": rate,
        "num_samples": length.samples,
        "duration": length.samples / rate,
        "channel_ids": [0],
    }
    return {
        "type": "MonoCut",
        "id": name,
        "start": first / rate,
        "duration": count / rate,
        "channel": 0,
        "supervisions": [supervision],
        "recording": recording,
    }


class _Tally:
    """Counts a split while it is written."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.seconds = 0.0
        self.transcribed = 0
        self.speakers: set[str] = set()
        self.languages: set[str] = set()
        self.labels: set[str] = set()

    @property
    def utterances(self) -> int:
        return len(self.seen)

    def add(self, cut: Mapping[str, Any]) -> None:
        if cut["id"] in self.seen:
            raise ManifestError(f"Two utterances have the id '{cut['id']}': ids must be unique within a split.")
        self.seen.add(cut["id"])
        supervision = cut["supervisions"][0]
        self.seconds += cut["duration"]
        self.transcribed += bool(str(supervision.get("text", "")).strip())
        self.speakers.add(str(supervision.get("speaker", "")))
        self.languages.add(str(supervision.get("language", "")))
        self.labels |= {*supervision, *supervision.get("custom", {})}

    def summary(self) -> dict[str, Any]:
        return {
            "hours": round(self.seconds / 3600, 4),
            "utterances": self.utterances,
            "speakers": len(self.speakers - {""}),
            "languages": len(self.languages - {""}),
            "transcribed": self.transcribed,
            "labels": sorted(self.labels - {"id", "recording_id", "start", "duration", "channel", "custom"}),
        }


def write_lists(root: Path, files: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Writes lists/<name>.txt; name -> path below the corpus folder."""
    for old in (root / "lists").glob("*.txt"):
        old.unlink()
    paths = {}
    for name, lines in files.items():
        path = root / "lists" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        paths[name] = f"lists/{name}.txt"
    return paths


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def relative(text: str, source: Path) -> str:
    """A path or a JSON line without the folder of the corpus, so that equal corpora in two places are alike."""
    return text.replace(f"{source}{os.sep}", "")
