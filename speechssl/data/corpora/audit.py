"""Counts what there should be of a published corpus and what there is, without opening audio."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechssl.config import load_config
from speechssl.data.corpora.base import EXAMPLES, CorpusModule, Item, NoSettings, Reading, corpus_module
from speechssl.errors import ConfigError


@dataclass(frozen=True)
class Row:
    """One line of an audit."""

    what: str
    expected: int | None
    """As published, or as the corpus's own lists say; None = not known."""
    found: int
    examples: tuple[str, ...] = ()
    """A few that are missing, or that a note is about."""
    fault: bool = False
    """Whether something is missing."""


def audit(name: str, source: str | Path, *, config: str | Path | None = None) -> list[Row]:
    """Counts what there should be and what there is, without opening audio.

    Args:
        config: YAML file with the differences from the corpus's settings.

    Raises:
        ManifestError: `source` does not hold the corpus, or one of its lists is malformed.
    """
    module = corpus_module(name)
    reading = module.read(Path(source).absolute(), settings_of(module, name, config))
    return audit_rows(reading, find_missing(reading))


def audit_rows(reading: Reading, missing: Mapping[str, Sequence[str]]) -> list[Row]:
    """One row per split, per label whose values are counted, and per note.

    Args:
        missing: as `find_missing` returns it.
    """
    rows = []
    for split in dict.fromkeys([*reading.splits, *reading.expected]):
        items = reading.splits.get(split, ())
        count = reading.expected.get(split)
        if count is not None and count.optional and not items:
            continue
        lost = missing.get(split, ())
        found = len(items) - len(lost)
        expected = max(len(items), 0 if count is None else count.utterances)
        rows.append(
            Row(f"{split}: utterances", expected, found, tuple(dict.fromkeys(lost))[:EXAMPLES], found < expected)
        )
        for label, values in ({} if count is None else count.distinct).items():
            known = {str(item.labels[label]) for item in items if label in item.labels}
            rows.append(Row(f"{split}: values of '{label}'", values, len(known), (), len(known) < values))
        rows += _value_rows(split, items, frozenset(lost), reading.counted)
    return rows + [Row(note.what, None, note.count, note.examples) for note in reading.notes]


def _value_rows(split: str, items: Sequence[Item], lost: frozenset[str], labels: Sequence[str]) -> list[Row]:
    """One row per value of each label: how many utterances the lists name, and of how many the files are there."""
    rows = []
    for label in labels:
        listed = Counter(str(item.labels[label]) for item in items if label in item.labels)
        gone = Counter(
            str(item.labels[label]) for item in items if label in item.labels and not lost.isdisjoint(item.files())
        )
        rows += [
            Row(f"{split}: {label} '{value}'", count, count - gone[value], (), gone[value] > 0)
            for value, count in sorted(listed.items())
        ]
    return rows


def find_missing(reading: Reading) -> dict[str, list[str]]:
    """Split -> the files that should be there and are not; each folder is listed once, no file is opened."""
    folders: dict[str, frozenset[str]] = {}

    def there(path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in folders:
            try:
                with os.scandir(folder) as entries:
                    folders[folder] = frozenset(entry.name for entry in entries)
            except OSError:
                folders[folder] = frozenset()
        return name in folders[folder]

    return {
        split: [path for item in items if (path := next((p for p in item.files() if not there(p)), ""))]
        for split, items in reading.splits.items()
    }


def settings_of(module: CorpusModule, name: str, config: str | Path | None) -> Any:
    """The settings of a corpus, with the differences that a YAML file has."""
    default = getattr(module, "CONFIG", None)
    if default is None and config is not None:
        raise ConfigError(f"The corpus '{name}' has no settings: drop --config.")
    return NoSettings() if default is None else load_config(default, yaml=config)
