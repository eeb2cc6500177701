"""What the two tracks of ASVspoof 2021 share: the keys, and where the audio may lie.

The keys come apart from the audio, as LA-keys-full.tar.gz and DF-keys-full.tar.gz, which unpack to keys/LA/CM/ and
keys/DF/CM/ with a file trial_metadata.txt. Its columns are those of the official evaluation package (asvspoof-challenge
2021, `eval-package/config.py` and README.md). Split `test` is the subset 'eval'; `progress` and `hidden` are the
others. There is no training data: systems are trained on ASVspoof 2019 LA.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from speechssl.data.corpora.base import Count, Item, Note, Reading, find_root
from speechssl.data.corpora.spoofing import (
    COUNTED,
    check_rows,
    check_values,
    first_of,
    labels_of,
    read_rows,
    unlisted,
)
from speechssl.errors import ManifestError

HOMEPAGE = "https://www.asvspoof.org/index2021.html"
LICENCE = "ODC-By-1.0"
SUBSETS = {"eval": "test", "progress": "progress", "hidden": "hidden"}
TRIMS = ("notrim", "trim")


def layout(track: str) -> str:
    """What the folder must hold."""
    return f"ASVspoof2021_{track}_eval/flac/ and keys/{track}/CM/trial_metadata.txt (from {track}-keys-full.tar.gz)"


def read_track(  # noqa: PLR0917  what a track is
    source: Path, track: str, name: str, columns: Sequence[str], expected: dict[str, Count], counted: Sequence[str]
) -> Reading:
    """Lists the subsets of a track.

    Args:
        track: 'LA' or 'DF'.
        columns: of trial_metadata.txt.
        counted: further labels whose values the audit counts.
    """
    audio = f"ASVspoof2021_{track}_eval"
    keys = [
        f"{folder}{track}/CM/trial_metadata.txt"
        for folder in ("keys/", "", f"{track}-keys-full/keys/", f"{audio}/keys/", f"{audio}/")
    ]
    root = find_root(source, (audio, *keys), name=name, layout=layout(track))
    path = first_of(root, keys, Path.is_file)
    if path is None:
        raise ManifestError(
            f"The list {root / keys[0]} is missing: fetch {track}-keys-full.tar.gz from {HOMEPAGE} and unpack it there."
        )
    rows = check_rows(path, read_rows(path, columns))
    check_values(path, rows, "subset", tuple(SUBSETS))
    check_values(path, rows, "trim", TRIMS)
    homes = _homes(root, audio)
    splits: dict[str, list[Item]] = {}
    for _, row in rows:
        where = homes.get(row["id"], str(root / audio / "flac"))
        labels = labels_of(row, language="en")
        if "vocoder" in labels:
            labels["family"] = labels["vocoder"]
        splits.setdefault(SUBSETS[row["subset"]], []).append(Item(row["id"], f"{where}/{row['id']}.flac", labels))
    notes: tuple[Note, ...] = ()
    for folder in dict.fromkeys([str(root / audio / "flac"), *homes.values()]):
        notes += unlisted(Path(folder), [row["id"] for _, row in rows])
    ordered = {split: splits[split] for split in SUBSETS.values() if split in splits}
    return Reading(ordered, expected, notes, counted=(*COUNTED, *counted))


def _homes(root: Path, audio: str) -> dict[str, str]:
    """Where each file lies, if the archives of several parts were unpacked into folders of their own."""
    parts = [p / audio / "flac" for p in sorted(root.glob(f"{audio}_part*"))]
    parts += [p / "flac" for p in sorted(root.glob(f"{audio}_part*"))]
    found: dict[str, str] = {}
    for folder in parts:
        if folder.is_dir():
            with os.scandir(folder) as entries:
                found.update((e.name.removesuffix(".flac"), str(folder)) for e in entries if e.name.endswith(".flac"))
    return found
