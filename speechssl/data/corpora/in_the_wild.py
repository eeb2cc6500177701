"""In-the-Wild: deepfakes of public figures from the internet, and their real speech (Müller et al. 2022,
arXiv:2203.16263). There is nothing to train on: all of meta.csv is `test`. Which system made a fake is not known."""

from pathlib import Path

from speechssl.data.corpora.base import Count, Item, NoSettings, Reading, find_root, need_file, read_table
from speechssl.data.corpora.spoofing import check_rows, labels_of, unlisted

NAME = "In-the-Wild"
HOMEPAGE = "https://deepfake-total.com/in_the_wild"
LICENCE = "Apache-2.0"
LAYOUT = "meta.csv and the .wav files, as release_in_the_wild.zip unpacks"
EXPECTED = {"test": Count(31_779)}
"""The lines of meta.csv as it is published."""


def read(source: Path, config: NoSettings) -> Reading:
    """Lists what meta.csv names."""
    del config
    root = find_root(source, ("meta.csv",), name=NAME, layout=LAYOUT)
    path = need_file(root / "meta.csv", "it comes in release_in_the_wild.zip")
    rows = check_rows(path, read_table(path, ("file", "speaker", "label")), column="file", key="label")
    folder = root / "wavs" if (root / "wavs").is_dir() else root
    items = []
    for _, row in rows:
        labels = labels_of({"speaker": row["speaker"], "key": row["label"]}, language="en")
        items.append(Item(row["file"].removesuffix(".wav"), str(folder / row["file"]), labels))
    notes = unlisted(folder, [item.id for item in items], suffix=".wav")
    return Reading({"test": items}, EXPECTED, notes, counted=("key",))
