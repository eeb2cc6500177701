"""VCC2020: the Voice Conversion Challenge 2020 (Yi et al. 2020, DOI 10.21437/VCC_BC.2020-14).

Four English sources are converted to four English targets (task 1) or to six who speak Finnish, German or Mandarin
(task 2). `train` and `dev` hold the training speech of sources and targets by the lists of ESPnet's baseline
(`egs/vcc20/vc1_task1/local/lists`), which S3PRL and SUPERB-SG train by too (S3PRL `a2o-vc-vcc2020/dataset.py`): 60
utterances and 10 of each speaker, 1-60 and 61-70 of the parallel part, and the whole of the English targets' other one.
`test` holds the 25 sentences that are converted, by the sources and, for reference, by the targets, which is what the
challenge calls ground truth. The lists `conversion_dev` and `conversion_test` name the official conversions, every
sentence of every source to every target: 400 in task 1, 600 in task 2.

Two forms are read: the archives as they unpack, and the one folder for each speaker that S3PRL's and ESPnet's download
scripts make of them. These score task 2 beside the targets' English recordings, E30001 and so on, and the README says
that they are English; where the files are called by the target's own letter instead, those are taken.
`f0_min` and `f0_max` (Hz) of the targets are those of S3PRL `a2o-vc-vcc2020/data/f0.yaml`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from speechssl.data.corpora.base import Count, Item, Reading, find_root, note
from speechssl.data.pairs import LISTS, list_conversions
from speechssl.errors import ManifestError
from speechssl.text_files import read_lines

NAME = "VCC2020"
HOMEPAGE = "https://github.com/nii-yamagishilab/VCC2020-database"
LICENCE = "ODbL-1.0 (the contents DbCL-1.0)"
LAYOUT = (
    "source/, target_task1/, target_task2/, vcc2020_database_evaluation/, vcc2020_database_groundtruth/ and "
    "vcc2020_database_transcriptions/ as the archives unpack, or a folder for each speaker and prompts/"
)
SOURCES = ("SEF1", "SEF2", "SEM1", "SEM2")
TARGETS = {1: ("TEF1", "TEF2", "TEM1", "TEM2"), 2: ("TFF1", "TFM1", "TGF1", "TGM1", "TMF1", "TMM1")}
LANGUAGES = {"E": ("en", "Eng"), "F": ("fi", "Fin"), "G": ("de", "Ger"), "M": ("zh", "Man")}
F0_RANGES = {
    "TEF1": (127, 405), "TEF2": (108, 361), "TEM1": (71, 227), "TEM2": (57, 182), "TFF1": (139, 387),
    "TFM1": (60, 189), "TGF1": (109, 345), "TGM1": (75, 236), "TMF1": (126, 409), "TMM1": (81, 254),
}  # fmt: skip
# 60, 10 and 25 utterances of each of four sources and four targets.
EXPECTED = {
    "train": Count(480, {"speaker": 8}),
    "dev": Count(80, {"speaker": 8}),
    "test": Count(200, {"speaker": 8}),
}
TRAINING = "vcc2020_database_transcriptions/transcriptions_training/vcc2020_database_training_{}_transcriptions.txt"
EVALUATION = "vcc2020_database_transcriptions/transcriptions_evaluation/vcc2020_database_evaluation_transcriptions.txt"


@dataclass(frozen=True)
class Vcc2020Config:
    """Which task."""

    task: Literal[1, 2] = 1


CONFIG = Vcc2020Config()


def read(source: Path, config: Vcc2020Config) -> Reading:
    """Lists the speech of a task and its conversions."""
    root = find_root(source, ("vcc2020_database_evaluation", "SEF1"), name=NAME, layout=LAYOUT)
    targets = TARGETS[config.task]
    texts = _read_texts(root)
    splits: dict[str, list[Item]] = {"train": [], "dev": [], "test": []}
    for speaker in (*SOURCES, *targets):
        folder = "source" if speaker in SOURCES else f"target_task{config.task}"
        later = "evaluation" if speaker in SOURCES else "groundtruth"
        spoken = {
            "train": [(folder, name) for name in _training(speaker)],
            "dev": [(folder, f"{speaker[1]}{10_000 + number}") for number in range(61, 71)],
            "test": [(f"vcc2020_database_{later}", name) for name in _evaluation(root, speaker)],
        }
        for split, names in spoken.items():
            splits[split] += [_item(root, folder, speaker, name, texts) for folder, name in names]
    count = len(SOURCES) + len(targets)
    expected = {
        split: Count(size * count, {"speaker": count}) for split, size in (("train", 60), ("dev", 10), ("test", 25))
    }
    told = {split: [(i.id, i.labels["speaker"]) for i in items] for split, items in splits.items()}
    files = {
        LISTS[split]: list_conversions([pair for pair in told[split] if pair[1] in SOURCES], targets)
        for split in ("dev", "test")
    }
    silent = [item.id for items in splits.values() for item in items if not item.labels.get("text")]
    return Reading(splits, expected, note("utterances without a transcript", silent), files)


def _training(speaker: str) -> list[str]:
    """The names of the 60 training utterances of a speaker."""
    letter = speaker[1]
    if speaker.startswith("TE"):  # ten sentences that the sources say too, and fifty of their own
        return [f"E{10_000 + n}" for n in range(51, 61)] + [f"E{20_000 + n}" for n in range(1, 51)]
    return [f"{letter}{10_000 + n}" for n in range(1, 61)]


def _evaluation(root: Path, speaker: str) -> list[str]:
    letter = speaker[1]
    own = _path(root, "vcc2020_database_groundtruth", speaker, f"{letter}30001")
    return [f"{letter if letter != 'E' and own.is_file() else 'E'}{30_000 + n}" for n in range(1, 26)]


def _item(root: Path, folder: str, speaker: str, name: str, texts: dict[str, str]) -> Item:
    labels: dict[str, object] = {
        "speaker": speaker,
        "language": LANGUAGES[name[0]][0],
        "gender": speaker[2].lower(),
        "role": "source" if speaker in SOURCES else "target",
    }
    if name in texts:
        labels["text"] = texts[name]
    if speaker in F0_RANGES:
        labels["f0_min"], labels["f0_max"] = F0_RANGES[speaker]
    return Item(f"{speaker}_{name}", str(_path(root, folder, speaker, name)), labels)


def _path(root: Path, folder: str, speaker: str, name: str) -> Path:
    merged = root / speaker
    return (merged if merged.is_dir() else root / folder / speaker) / f"{name}.wav"


def _read_texts(root: Path) -> dict[str, str]:
    """Name of an utterance, such as E30001, -> what is said."""
    found = {}
    for letter, (_, word) in LANGUAGES.items():
        merged = root / "prompts" / f"{word}_transcriptions.txt"
        paths = [merged] if merged.is_file() else [root / TRAINING.format(word)]
        if letter == "E" and not merged.is_file():
            paths.append(root / EVALUATION)
        for path in paths:
            if path.is_file():
                found.update({f"{letter}{number}": text for number, text in _read_lines(path)})
    return found


def _read_lines(path: Path) -> Iterator[tuple[str, str]]:
    for where, line in read_lines(path):
        number, _, text = line.strip().partition(" ")
        if not (number.isdigit() and len(number) == 5 and text.strip()):
            raise ManifestError(f"{where} is '{line.strip()}', but must be five digits and a sentence.")
        yield number, text.strip()
