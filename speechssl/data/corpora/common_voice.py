"""Common Voice: sentences read by volunteers in many languages (Ardila et al. 2020, arXiv:1912.06670).

For recognition of one language and identification of several: train, dev and test are the published lists of all
languages that are there, or of those that a config names; `language` is the name of the folder, such as 'cs'.

What is read is what Lhotse's recipe reads (`lhotse/recipes/commonvoice.py`): clips by name, client_id as speaker,
sentence as text, without regard to quotes. Its `prepare_commonvoice` is not called: it drops missing clips, knows 23
languages, and needs columns that releases before 2022 lack; the tests hold that both give the same on a clean tree.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from sys import intern

from speechssl.data.corpora.base import Count, Item, Reading, note, read_table, subfolders, untrained
from speechssl.errors import ManifestError, suggest

NAME = "Common Voice"
HOMEPAGE = "https://commonvoice.mozilla.org/datasets"
LICENCE = "CC0-1.0"
LAYOUT = "a folder per language, each with clips/, train.tsv, dev.tsv and test.tsv (cv-corpus-<release>)"
EXPECTED: dict[str, Count] = {}
"""Releases and languages differ; the lists say what there should be."""
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class CommonVoiceConfig:
    """Which languages."""

    languages: tuple[str, ...] | None = None
    """None = all that are there."""


CONFIG = CommonVoiceConfig()


def read(source: Path, config: CommonVoiceConfig) -> Reading:
    """Lists the clips of all languages."""
    folders = _find_languages(source)
    names = [folder.name for folder in folders]
    for language in config.languages or ():
        if language not in names:
            raise ManifestError(f"{source} has no language '{language}'.{suggest(language, names)}")
    chosen = [folder for folder in folders if config.languages is None or folder.name in config.languages]
    splits = {split: [item for folder in chosen for item in _read(folder, split)] for split in SPLITS}
    empty = [item.id for items in splits.values() for item in items if not item.labels["text"]]
    splits = {split: items for split, items in splits.items() if items}
    return Reading(splits, EXPECTED, note("empty transcripts", empty) + untrained(splits, ("language",)))


def _find_languages(source: Path) -> list[Path]:
    """The folders of the languages in a release, in the one release that a folder holds, or of a single language."""
    if not source.is_dir():
        raise ManifestError(f"The folder {source} does not exist: give with --from where you have {NAME}.")
    if _is_language(source):
        return [source]
    releases = [folder for folder in (source, *subfolders(source)) if any(map(_is_language, subfolders(folder)))]
    if not releases or (len(releases) > 1 and releases[0] != source):
        why = "several folders in it do" if releases else "no folder in it has a train.tsv"
        raise ManifestError(f"{source} does not hold {NAME} ({why}): give with --from a folder with {LAYOUT}.")
    return [folder for folder in subfolders(releases[0]) if _is_language(folder)]


def _is_language(folder: Path) -> bool:
    return (folder / "train.tsv").is_file()


def _read(folder: Path, split: str) -> Iterator[Item]:
    path = folder / f"{split}.tsv"
    if not path.is_file():
        return
    for _, row in read_table(path, ("client_id", "path", "sentence"), delimiter="\t", quoted=False):
        file = row["path"] if Path(row["path"]).suffix else f"{row['path']}.mp3"  # the first releases have no suffix
        labels = {
            "text": row["sentence"].strip(),
            "speaker": intern(row["client_id"]),
            "language": folder.name,
            **{key: intern(row[key]) for key in ("gender", "age", "accents") if row.get(key)},
        }
        yield Item(file.rsplit(".", 1)[0], str(folder / "clips" / file), labels)
