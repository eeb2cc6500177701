"""MLAAD: fakes of many text-to-speech systems in many languages (Müller et al. 2024, arXiv:2401.09512).

The corpus is fakes alone, fake/<language>/<system>/ with a meta.csv that is separated by '|' and names, of each, the
recording of the M-AILABS corpus whose text it says. Where M-AILABS lies beside it (`bonafide`), these recordings are
the bona fide speech; each once, however many systems say it. There is no official protocol of train and test, so all of
it is `test`. The attack is the system's name, its family the architecture.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from speechssl.data.corpora.base import Count, Item, Note, Reading, find_root, need_file, note, read_table, subfolders
from speechssl.data.corpora.spoofing import BONA_FIDE, COUNTED, SPOOF, unlisted
from speechssl.errors import ManifestError

NAME = "MLAAD"
HOMEPAGE = "https://deepfake-total.com/mlaad"
LICENCE = "CC-BY-NC-4.0"
LAYOUT = "fake/<language>/<system>/ with a meta.csv in each, and M-AILABS beside fake/, in m_ailabs/"
EXPECTED: dict[str, Count] = {}
"""Each version has more systems; the lists of the systems are complete in themselves."""


@dataclass(frozen=True)
class MlaadConfig:
    """Where the bona fide speech is."""

    bonafide: str = "m_ailabs"
    """Folder of M-AILABS, in which en_US/by_book/ and others lie; relative to that of the corpus, or absolute."""


CONFIG = MlaadConfig()


def read(source: Path, config: MlaadConfig) -> Reading:
    """Lists the fakes, and the recordings whose text they say."""
    root = find_root(source, ("fake",), name=NAME, layout=LAYOUT)
    real = root / config.bonafide
    items: list[Item] = []
    originals: dict[str, Item] = {}
    notes: tuple[Note, ...] = ()
    for folder in [system for language in subfolders(root / "fake") for system in subfolders(language)]:
        fakes = _read_system(folder)
        notes += unlisted(folder, [Path(item.path).stem for item in fakes], suffix=".wav")
        items += fakes
        names = {str(item.labels["original"]) for item in fakes} - originals.keys()
        originals.update((name, _bona_fide(name, real)) for name in sorted(names))
    if not items:
        raise ManifestError(f"{root / 'fake'} holds no folder of a system: give with --from a folder with {LAYOUT}.")
    if real.is_dir():
        items += sorted(originals.values(), key=lambda item: item.id)
    else:
        what = f"no {config.bonafide}/ with M-AILABS, so no bona fide speech: recordings it would give"
        notes += note(what, list(originals))
    return Reading({"test": items}, EXPECTED, notes, counted=COUNTED)


def _read_system(folder: Path) -> list[Item]:
    path = need_file(folder / "meta.csv", "each system of MLAAD has one")
    columns = ("path", "original_file", "language", "model_name", "architecture")
    items = []
    seen: set[str] = set()
    for where, row in read_table(path, columns, delimiter="|"):
        name = PurePosixPath(row["path"]).name  # the paths begin at the folder of the corpus, in some versions
        if name in seen:
            raise ManifestError(f"{where} names '{name}' a second time: fetch the file again.")
        seen.add(name)
        labels = _labels(row) | {"key": SPOOF, "attack": row["model_name"], "family": row["architecture"]}
        items.append(Item(_id(f"{folder.parent.name}/{folder.name}/{name}"), str(folder / name), labels))
    return items


def _labels(row: Mapping[str, str]) -> dict[str, str]:
    labels = {"language": row["language"], "original": row["original_file"].removeprefix("./")}
    optional = {"text": "transcript", "training_data": "training_data", "speaker": "reference_speaker"}
    return labels | {label: row[column] for label, column in optional.items() if row.get(column)}


def _bona_fide(original: str, real: Path) -> Item:
    """A recording such as en_US/by_book/male/elliot_miller/hunters_space/wavs/hunters_space_01_f000001.wav."""
    parts = PurePosixPath(original).parts
    labels = {"key": BONA_FIDE, "attack": BONA_FIDE, "family": BONA_FIDE, "original": original}
    labels["language"] = parts[0].split("_")[0]
    if "by_book" in parts and len(parts) > parts.index("by_book") + 2:
        at = parts.index("by_book")
        labels["gender"], labels["speaker"] = parts[at + 1][0], parts[at + 2]
    return Item(_id(f"{BONA_FIDE}/{original}"), str(real / original), labels)


def _id(path: str) -> str:
    return path.rpartition(".")[0].replace("/", "-").replace(" ", "_")
