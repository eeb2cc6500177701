"""Any corpus that Lhotse has a recipe for, or that somebody wrote Lhotse manifests of.

    lhotse prepare vctk /data/vctk manifests/vctk
    speechssl prepare lhotse_manifests data/vctk --from manifests/vctk

The source is a folder of manifests: <corpus>_recordings_<split>.jsonl.gz beside <corpus>_supervisions_<split>.jsonl.gz,
as `lhotse prepare` writes them, or <corpus>_cuts_<split>.jsonl.gz; without a split, everything is train. All that the
supervisions say becomes labels, so that a task can be run on, or a probe fitted to, any of them.

A recipe of Lhotse may have left out files that it did not find; only it can say so. Files that went missing since then
are found here.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from speechssl.data.corpora.base import Count, Item, Reading
from speechssl.data.corpus import iterate_manifest
from speechssl.errors import ManifestError, suggest

NAME = "manifests of Lhotse"
HOMEPAGE = "https://lhotse.readthedocs.io/en/latest/corpus.html"
LICENCE = "that of the corpus"
LAYOUT = (
    "<corpus>_recordings_<split>.jsonl.gz and <corpus>_supervisions_<split>.jsonl.gz, or <corpus>_cuts_<split>.jsonl.gz"
)
EXPECTED: dict[str, Count] = {}
"""The manifests say what there should be."""
USUAL = {"valid": "dev", "validation": "dev", "eval": "test"}
"""What splits are called elsewhere."""
_FILE = re.compile(r"(?P<corpus>.*?)_?(?P<kind>recordings|cuts)(?:_(?P<split>.+?))?\.jsonl(?:\.gz)?")


@dataclass(frozen=True)
class LhotseConfig:
    """What the splits are called."""

    splits: dict[str, str] = field(default_factory=dict)
    """Name in the manifests' files -> name here, such as {train-clean-100: train}; several may become one."""


CONFIG = LhotseConfig()


def read(source: Path, config: LhotseConfig) -> Reading:
    """Lists what the manifests name."""
    if not source.is_dir():
        raise ManifestError(f"The folder {source} does not exist: give with --from where you have {NAME}.")
    files = _find_manifests(source)
    for name in config.splits:
        if name not in files:
            raise ManifestError(f"{source} has no manifest of a split '{name}'.{suggest(name, files)}")
    splits: dict[str, list[Item]] = {}
    for name, path in files.items():
        items = splits.setdefault(config.splits.get(name, USUAL.get(name, name)), [])
        for _, utterance in iterate_manifest(path):
            file = os.path.abspath(utterance.path)  # noqa: PTH100  # a million times: pathlib takes ten times as long
            items.append(Item(utterance.id, file, utterance.labels, utterance.start, utterance.duration))
    return Reading(splits, EXPECTED)


def _find_manifests(source: Path) -> dict[str, Path]:
    """Split, as the file is called -> manifest; of a split that has both, the cuts."""
    found: dict[str, tuple[str, Path]] = {}
    for path in sorted(source.iterdir(), reverse=True):  # recordings before cuts
        match = _FILE.fullmatch(path.name)
        if match is None:
            continue
        split = match["split"] or "train"
        if split in found and found[split][0] != match["corpus"]:
            raise ManifestError(
                f"{source} holds manifests of '{found[split][0]}' and of '{match['corpus']}': give each a folder."
            )
        found[split] = (match["corpus"], path)
    if not found:
        raise ManifestError(f"{source} does not hold {NAME} (it has none): give with --from a folder with {LAYOUT}.")
    return {split: path for split, (_, path) in sorted(found.items())}
