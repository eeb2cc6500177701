"""ADD, and whatever is folders of audio with lists of labels: '<file> <label>' or '<file> <label> <attack>' a line.

The Audio Deep Synthesis Detection challenges (Yi et al. 2022, arXiv:2202.08433) come so, their labels being 'genuine'
and 'fake'; also taken are bonafide, bona-fide, real and spoof. The lists of ADD 2022 are found by themselves, those of
others are named in a YAML file, each with the folder that its files are in:

    lists: {train: labels/train.txt, test: labels/test.txt}
    audio: {train: wav/train, test: wav/test}
"""

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from speechssl.data.corpora.base import Count, Item, Note, Reading, find_root, need_file
from speechssl.data.corpora.spoofing import COUNTED, NONE, Row, check_rows, first_of, labels_of, unlisted
from speechssl.errors import ConfigError, ManifestError
from speechssl.text_files import read_lines

NAME = "ADD"
HOMEPAGE = "http://addchallenge.cn/add2022"
LICENCE = "that of the challenge (research only)"
LAYOUT = "ADD_train_dev/{train,dev}/ and ADD_train_dev/label/{train,dev}_label.txt, or lists that --config names"
EXPECTED: dict[str, Count] = {}
"""The lists say what there should be."""
USUAL = {
    "train": (("ADD_train_dev/label/train_label.txt", "ADD_train_dev/train"), ("label/train_label.txt", "train")),
    "dev": (("ADD_train_dev/label/dev_label.txt", "ADD_train_dev/dev"), ("label/dev_label.txt", "dev")),
    "adaptation": (("track1adp_out/label.txt", "track1adp_out"),),
    "test": (("ADD2022_test/track1_label.txt", "ADD2022_test/track1test"), ("track1_label.txt", "track1test")),
}
"""Split -> where its list and its audio may lie."""
COLUMNS = ("id", "key", "attack")


@dataclass(frozen=True)
class AddConfig:
    """Lists and folders, where they are not those of ADD 2022."""

    lists: dict[str, str] = field(default_factory=dict)
    """Split -> its list, from the folder of the corpus; none = those that are found."""
    audio: dict[str, str] = field(default_factory=dict)
    """Split -> the folder of its files; none = that of the list."""
    language: str = "zh"
    """What is spoken; '' = not known."""


CONFIG = AddConfig()


def read(source: Path, config: AddConfig) -> Reading:
    """Lists what each list names."""
    usual = [pair for pairs in USUAL.values() for pair in pairs]
    marks = tuple(config.lists.values()) or tuple(name for name, _ in usual)
    root = find_root(source, marks, name=NAME, layout=LAYOUT)
    stray = sorted(set(config.audio) - set(config.lists))
    if stray:
        raise ConfigError(f"`audio` has the split '{stray[0]}', but `lists` has not: name its list there.")
    splits: dict[str, list[Item]] = {}
    notes: tuple[Note, ...] = ()
    listed: dict[Path, set[str]] = {}
    for split, (path, folder) in _lists(root, config).items():
        need_file(path, "`lists` names it")
        splits[split] = [_item(where, row, folder, config.language) for where, row in _read(path)]
        listed.setdefault(folder, set()).update(item.path for item in splits[split])
    for folder, paths in listed.items():
        for suffix in sorted({PurePosixPath(path).suffix for path in paths}):
            names = [Path(path).stem for path in paths if path.endswith(suffix)]
            notes += unlisted(folder, names, suffix=suffix)
    return Reading(splits, EXPECTED, notes, counted=COUNTED)


def _lists(root: Path, config: AddConfig) -> dict[str, tuple[Path, Path]]:
    """Split -> its list, the folder of its files."""
    if config.lists:
        own = {split: root / name for split, name in config.lists.items()}
        return {
            split: (path, root / config.audio[split] if split in config.audio else path.parent)
            for split, path in own.items()
        }
    found = {}
    for split, pairs in USUAL.items():
        path = first_of(root, [name for name, _ in pairs], Path.is_file)
        if path is not None:
            found[split] = (path, next(root / audio for name, audio in pairs if root / name == path))
    return found


def _read(path: Path) -> list[Row]:
    rows = []
    for where, line in read_lines(path):
        values = line.replace(",", " ").split()
        if len(values) not in {2, 3}:
            raise ManifestError(f"{where} is '{line.strip()}', but must be a file, its label, and perhaps its attack.")
        rows.append((where, dict(zip(COLUMNS, values, strict=False))))
    for _, row in rows:
        row.setdefault("attack", NONE)
    return check_rows(path, rows)


def _item(where: str, row: dict[str, str], folder: Path, language: str) -> Item:
    name = PurePosixPath(row["id"])
    if not name.suffix:
        raise ManifestError(f"{where} names '{name}', which has no ending: write the whole name of the file.")
    labels = labels_of(row)
    if language:
        labels["language"] = language
    return Item("-".join(name.with_suffix("").parts), str(folder / name), labels)
