"""LibriSpeech: read English audiobooks, 960 hours (Panayotov et al. 2015, ICASSP).

SUPERB trains on train-clean-100, chooses on dev-clean and tests on test-clean (S3PRL `downstream/docs/superb.md`).
The other parts that are there become splits of their own names; a config puts any of them together:

    train: [train-clean-100, train-clean-360, train-other-500]

The parts are those of Lhotse's recipe (`lhotse/recipes/librispeech.py`), ids and labels too. Its `prepare_librispeech`
itself is not called: it drops missing files with no more than a log line, stops at an empty transcript, and opens
every header before it can say what is missing; the tests hold that both give the same on a clean tree.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from speechssl.data.corpora.base import Count, Item, Note, Reading, find_root, note, subfolders
from speechssl.errors import ConfigError, ManifestError, suggest
from speechssl.text_files import read_lines

NAME = "LibriSpeech"
HOMEPAGE = "https://www.openslr.org/12"
LICENCE = "CC-BY-4.0"
LAYOUT = "train-clean-100/, dev-clean/, test-clean/ or other parts, as the archives unpack"
# Utterances: Hugging Face `openslr/librispeech_asr`, dataset card. Speakers and hours: Panayotov et al. 2015, table 1.
EXPECTED = {
    "train-clean-100": Count(28_539, {"speaker": 251}, 100.6),
    "train-clean-360": Count(104_014, {"speaker": 921}, 363.6),
    "train-other-500": Count(148_688, {"speaker": 1166}, 496.7),
    "dev-clean": Count(2703, {"speaker": 40}, 5.4),
    "dev-other": Count(2864, {"speaker": 33}, 5.3),
    "test-clean": Count(2620, {"speaker": 40}, 5.4),
    "test-other": Count(2939, {"speaker": 33}, 5.1),
}
MINI = ("train-clean-5", "dev-clean-2")
"""Of Mini LibriSpeech, https://www.openslr.org/31."""


@dataclass(frozen=True)
class LibriSpeechConfig:
    """Which parts make up which split."""

    train: tuple[str, ...] = ("train-clean-100",)
    dev: tuple[str, ...] = ("dev-clean",)
    test: tuple[str, ...] = ("test-clean",)

    def __post_init__(self) -> None:
        for field in fields(self):
            for part in getattr(self, field.name):
                if part not in (*EXPECTED, *MINI):
                    raise ConfigError(f"`{field.name}` names no part '{part}'.{suggest(part, (*EXPECTED, *MINI))}")


CONFIG = LibriSpeechConfig()


def read(source: Path, config: LibriSpeechConfig) -> Reading:
    """Lists the parts that are there."""
    root = find_root(source, (*EXPECTED, *MINI), name=NAME, layout=LAYOUT)
    chosen = {field.name: tuple(getattr(config, field.name)) for field in fields(config)}
    taken = {part for parts in chosen.values() for part in parts}
    chosen |= {part: (part,) for part in (*EXPECTED, *MINI) if part not in taken}
    splits: dict[str, list[Item]] = {}
    notes: tuple[Note, ...] = ()
    for split, parts in chosen.items():
        silent: list[str] = []
        items = [item for part in parts for item in _read_part(root / part, silent)]
        notes += note(f"{split}: chapters without a transcript", silent)
        notes += note(f"{split}: empty transcripts", [item.id for item in items if not item.labels["text"]])
        if items:
            splits[split] = items
    expected = {split: _sum(parts, split not in ("train", "dev", "test")) for split, parts in chosen.items()}
    return Reading(splits, {split: count for split, count in expected.items() if count is not None}, notes)


def _read_part(part: Path, silent: list[str]) -> Iterator[Item]:
    """The utterances of a part; chapters without a list of transcripts are added to `silent`."""
    for speaker in subfolders(part):
        for chapter in subfolders(speaker):
            transcripts = chapter / f"{speaker.name}-{chapter.name}.trans.txt"
            if not transcripts.is_file():
                silent.append(str(chapter))
                continue
            for where, line in read_lines(transcripts):
                name, _, text = line.strip().partition(" ")
                if not name.startswith(f"{speaker.name}-{chapter.name}-"):
                    raise ManifestError(f"{where} names '{name}', which is not of this chapter: fetch the file again.")
                labels = {"text": text.strip(), "speaker": speaker.name, "language": "en"}
                yield Item(name, str(chapter / f"{name}.flac"), labels)


def _sum(parts: tuple[str, ...], optional: bool) -> Count | None:
    """The counts of several parts, whose speakers are distinct; None where one is not published."""
    counts = [EXPECTED[part] for part in parts if part in EXPECTED]
    if not counts or len(counts) < len(parts):
        return None
    speakers = sum(count.distinct["speaker"] for count in counts)
    hours = sum(count.hours or 0.0 for count in counts)
    return Count(sum(count.utterances for count in counts), {"speaker": speakers}, round(hours, 1), optional)
