"""VoxCeleb1: interviews of 1251 celebrities (Nagrani et al. 2017, arXiv:1706.08612), for SUPERB's two speaker tasks.

Identification: train, dev and test are codes 1, 2 and 3 of iden_split.txt, which S3PRL ships as veri_test_class.txt
(S3PRL `downstream/voxceleb1/dataset.py`). All 1251 speakers are in each.

Verification: the 40 test speakers id10270 to id10309 are `speaker_test`. Of the others, codes 1 and 3 are
`speaker_train` and code 2 is `speaker_dev`, as S3PRL `dataio/corpus/voxceleb1sv.py` has it; S3PRL
`downstream/sv_voxceleb1` has no dev and trains on both together. The lists of trials that are there are kept under
their names, line by line '<1 = same speaker> <id> <id>': veri_test.txt (VoxCeleb1-O) and veri_test2.txt (cleaned, the
one of SUPERB, where it is called voxceleb1_test_v2.txt), list_test_all*.txt (-E), list_test_hard*.txt (-H).

Ids are those of Lhotse's recipe (`lhotse/recipes/voxceleb.py`), so `id10001-1zcIwhmdeo4-00001`. Its `prepare_voxceleb`
is not called: it has no identification split, fetches the trials over the network into the working folder, and looks
up each of 150 000 recordings in a list; the tests hold that both give the same utterances and speakers.
"""

from collections.abc import Iterator
from pathlib import Path

from speechssl.data.corpora.base import Count, Item, NoSettings, Reading, find_root, subfolders
from speechssl.errors import ManifestError
from speechssl.text_files import read_lines

NAME = "VoxCeleb1"
HOMEPAGE = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html"
LICENCE = "CC-BY-4.0"
LAYOUT = "dev/wav/ and test/wav/ (or both in wav/), iden_split.txt, and the lists of trials such as veri_test2.txt"
# Identification: Hugging Face `datasets/superb/dataset_infos.json`, config 'si'. Verification: 148 642 utterances of
# 1211 speakers and 4874 of 40 (publisher's page); the former are split here: sizes are not published.
EXPECTED = {
    "train": Count(138_361, {"speaker": 1251}),
    "dev": Count(6904),
    "test": Count(8251, {"speaker": 1251}),
    "speaker_train": Count(0, {"speaker": 1211}),
    "speaker_dev": Count(0),
    "speaker_test": Count(4874, {"speaker": 40}),
}
SPLIT_LISTS = ("iden_split.txt", "veri_test_class.txt")
TRIAL_LISTS = (
    *("veri_test2", "veri_test", "voxceleb1_test_v2"),
    *("list_test_all2", "list_test_all", "list_test_hard2", "list_test_hard"),
)
TEST_SPEAKERS = frozenset(f"id{number}" for number in range(10_270, 10_310))
CODES = {"1": "train", "2": "dev", "3": "test"}


def read(source: Path, config: NoSettings) -> Reading:
    """Lists both tasks' splits and the trials."""
    del config
    root = find_root(source, ("dev/wav", "test/wav", "wav"), name=NAME, layout=LAYOUT)
    listed = _find_list(root, SPLIT_LISTS)
    if listed is None:
        raise ManifestError(
            f"{root} has no iden_split.txt: fetch it from {HOMEPAGE} (it is not in the archives of the audio)."
        )
    homes = {s.name: s.parent for base in ("wav", "test/wav", "dev/wav") for s in subfolders(root / base)}
    splits: dict[str, list[Item]] = {name: [] for name in EXPECTED}
    for split, item in _read_split(listed, homes, root / "dev/wav"):
        splits[split].append(item)
        speaker = item.labels["speaker"]
        part = "test" if speaker in TEST_SPEAKERS else "dev" if split == "dev" else "train"
        splits[f"speaker_{part}"].append(item)
    known = frozenset(item.id for split in CODES.values() for item in splits[split])
    found = {name: path for name in TRIAL_LISTS if (path := _find_list(root, (f"{name}.txt",))) is not None}
    trials = {name: list(_read_trials(path, known)) for name, path in found.items()}
    splits = {name: sorted(items, key=lambda item: item.id) for name, items in splits.items() if items}
    return Reading(splits, EXPECTED, (), trials)


def _find_list(root: Path, names: tuple[str, ...]) -> Path | None:
    """Where a list lies: in the folder of the corpus or in its meta/."""
    paths = [folder / name for folder in (root, root / "meta") for name in names]
    return next((path for path in paths if path.is_file()), None)


def _read_split(path: Path, homes: dict[str, Path], default: Path) -> Iterator[tuple[str, Item]]:
    for where, line in read_lines(path):
        code, _, file = line.strip().partition(" ")
        if code not in CODES or not _is_utterance(file):
            raise ManifestError(f"{where} is '{line.strip()}', but must look like '1 id10001/1zcIwhmdeo4/00001.wav'.")
        speaker = file.split("/")[0]
        labels = {"speaker": speaker, "session": file.split("/")[1]}
        yield CODES[code], Item(_id(file), str(homes.get(speaker, default) / file), labels)


def _read_trials(path: Path, known: frozenset[str]) -> Iterator[str]:
    for where, line in read_lines(path):
        values = line.split()
        if len(values) != 3 or values[0] not in "01":
            raise ManifestError(f"{where} is '{line.strip()}', but must be 1 or 0 and two files.")
        for file in values[1:]:
            if not _is_utterance(file) or _id(file) not in known:
                raise ManifestError(f"{where} names '{file}', which no line of the identification split does.")
        yield f"{values[0]} {_id(values[1])} {_id(values[2])}"


def _is_utterance(file: str) -> bool:
    return file.endswith(".wav") and file.count("/") == 2


def _id(file: str) -> str:
    return file.removesuffix(".wav").replace("/", "-")
