"""Writes a corpus: clips in, Lhotse manifests and `corpus.json` out (the layout is in `speechssl.data.corpus`).

Two kinds of splits. By text: the side of a sentence is a hash of its normalised text, so nobody says on test what
anybody says on train. By speaker: the caller says which speaker is on which side.
"""

import gzip
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechssl.data.corpus import FORMAT
from speechssl.data.flac import SAMPLE_RATE
from speechssl.errors import ManifestError
from speechssl.files import replacing

if TYPE_CHECKING:
    from lhotse import MonoCut

REVISION = 1
"""Raised when a reader or a split gives something else than before, so that finished corpora are made again."""
TEXT_SPLITS = ("train", "dev", "test")
MIN_SPEAKER_DURATION = 1.0  # seconds; shorter clips are not in the speaker splits


@dataclass(frozen=True)
class Clip:
    """One utterance: a file of 16 kHz mono audio below the corpus folder, with what is known about it."""

    id: str
    path: str
    """Relative to the corpus folder, with forward slashes."""
    samples: int
    source: str
    """Package or generator the audio comes from."""
    language: str
    """ISO 639 code, with a region where the source gives one (`pt_br`)."""
    licence: str
    text: str | None = None
    """Normalised; None = not transcribed."""
    raw_text: str | None = None
    speaker: str | None = None
    """One person, or None where it isn't known who speaks."""
    custom: Mapping[str, Any] = field(default_factory=dict)

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.samples / SAMPLE_RATE


@lru_cache(maxsize=65_536)
def normalise_text(text: str) -> str:
    """Lower case, NFC; keeps letters, digits, combining marks and inner apostrophes, all else becomes a space."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower()).replace("’", "'")
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return " ".join(word for word in (w.strip("'") for w in kept.split()) if word)


def text_split(text: str) -> str:
    """The side of a normalised text: 'train' (80 %), 'dev' (10 %) or 'test' (10 %), the same on every machine."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 10
    return "dev" if bucket == 8 else "test" if bucket == 9 else "train"


def split_by_text(clips: Iterable[Clip]) -> dict[str, list[Clip]]:
    """Train, dev and test by text; clips without text are in train."""
    splits: dict[str, list[Clip]] = {name: [] for name in TEXT_SPLITS}
    for clip in clips:
        splits["train" if clip.text is None else text_split(clip.text)].append(clip)
    return splits


def split_by_speaker(clips: Iterable[Clip], sides: Mapping[str, str]) -> dict[str, list[Clip]]:
    """The manifests speaker_train, speaker_dev, speaker_test.

    Args:
        sides: 'train', 'dev' or 'test' for each speaker that takes part.
    """
    splits: dict[str, list[Clip]] = {f"speaker_{name}": [] for name in TEXT_SPLITS}
    for clip in clips:
        side = sides.get(clip.speaker or "")
        if side is not None and clip.duration >= MIN_SPEAKER_DURATION:
            splits[f"speaker_{side}"].append(clip)
    return splits


def write_corpus(
    root: Path,
    splits: Mapping[str, Sequence[Clip]],
    *,
    name: str,
    source: str,
    sources: Sequence[Mapping[str, Any]],
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes manifests/<split>.jsonl.gz and, last, corpus.json.

    Args:
        root: corpus folder; the audio of the clips is already below it.
        source: 'debian' or 'synthetic'.
        sources: for each package its name, version, licence, hours, utterances and what was skipped.
        extra: further keys of corpus.json, such as the config.

    Returns:
        What corpus.json holds. The fingerprint is a SHA-256 over the manifests and the sizes of the audio files.

    Raises:
        ManifestError: two clips share an id, or the audio of one is missing.
    """
    folder = root / "manifests"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jsonl.gz"):
        old.unlink()
    for split, clips in splits.items():
        _write_manifest(folder / f"{split}.jsonl.gz", clips)
    info = {
        "format": FORMAT,
        "name": name,
        "source": source,
        "revision": REVISION,
        "fingerprint": fingerprint_of_folder(root),
        "sources": list(sources),
        "splits": {split: _summary(clips) for split, clips in splits.items()},
        **(extra or {}),
    }
    text = json.dumps(info, ensure_ascii=False, indent=2) + "\n"
    with replacing(root / "corpus.json") as partial:
        partial.write_text(text, encoding="utf-8")
    written: dict[str, Any] = json.loads(text)
    return written


def fingerprint_of_folder(root: Path) -> str:
    """SHA-256 over the manifests and the sizes of the audio files that they name.

    Raises:
        ManifestError: an audio file is missing.
    """
    digest = hashlib.sha256()
    paths = set()
    for manifest in sorted((root / "manifests").glob("*.jsonl.gz")):
        data = gzip.decompress(manifest.read_bytes())
        digest.update(manifest.name.encode() + data)
        paths |= {json.loads(line)["recording"]["sources"][0]["source"] for line in data.splitlines()}
    digest.update(json.dumps([(path, _size(root / path)) for path in sorted(paths)]).encode())
    return digest.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ManifestError(f"The audio file {path} is missing: prepare the corpus again.") from error


def _summary(clips: Sequence[Clip]) -> dict[str, Any]:
    hours = sum(clip.samples for clip in clips) / SAMPLE_RATE / 3600
    speakers = {clip.speaker for clip in clips if clip.speaker}
    languages = {clip.language for clip in clips}
    return {
        "hours": round(hours, 4),
        "utterances": len(clips),
        "speakers": len(speakers),
        "languages": len(languages),
        "transcribed": sum(clip.text is not None for clip in clips),
    }


def _write_manifest(path: Path, clips: Sequence[Clip]) -> None:
    """Writes the cuts ordered by id."""
    ordered = sorted(clips, key=lambda clip: clip.id)
    twins = [a.id for a, b in pairwise(ordered) if a.id == b.id]
    if twins:
        raise ManifestError(f"Two clips have the id '{twins[0]}': ids must be unique.")
    lines = [json.dumps(to_cut(clip).to_dict(), ensure_ascii=False, sort_keys=True) for clip in ordered]
    data = "".join(line + "\n" for line in lines).encode()
    with replacing(path) as partial:
        partial.write_bytes(gzip.compress(data, mtime=0))  # no time stamp: equal corpora, equal files


def to_cut(clip: Clip) -> "MonoCut":
    """The clip as a Lhotse cut that spans its whole recording."""
    from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

    recording = Recording(
        id=clip.id,
        sources=[AudioSource(type="file", channels=[0], source=clip.path)],
        sampling_rate=SAMPLE_RATE,
        num_samples=clip.samples,
        duration=clip.duration,
    )
    custom = {"source": clip.source, "licence": clip.licence, **clip.custom}
    if clip.raw_text is not None:
        custom["raw_text"] = clip.raw_text
    supervision = SupervisionSegment(
        id=clip.id,
        recording_id=clip.id,
        start=0.0,
        duration=clip.duration,
        text=clip.text,
        language=clip.language,
        speaker=clip.speaker,
        custom=custom,
    )
    return MonoCut(
        id=clip.id, start=0.0, duration=clip.duration, channel=0, supervisions=[supervision], recording=recording
    )
