"""IEMOCAP: acted dialogues of ten speakers in five sessions (Busso et al. 2008), for emotion recognition.

SUPERB's four classes: neutral, happy with excited, angry, sad; all other utterances are left out (S3PRL
`downstream/emotion/IEMOCAP_preprocess.py`). Five folds, each with one session to test on: the splits fold1_train,
fold1_dev, fold1_test, ... fold5_test; train, dev and test are those of fold 1, S3PRL's default. Dev is a fifth of the
other four sessions, drawn as torch's `random_split` draws with seed 0 (`downstream/emotion/expert.py`), from a list
that is sorted here: S3PRL's has the order in which the file system lists the label files, so that its own dev set
differs from disk to disk, and with it speakers of dev are in train.

`speaker` is who speaks; S3PRL's is the first part of the file name, which says who wore the markers.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from speechssl.data.corpora.base import Count, Item, NoSettings, Reading, find_root, note, untrained
from speechssl.errors import ManifestError
from speechssl.text_files import read_lines

NAME = "IEMOCAP"
HOMEPAGE = "https://sail.usc.edu/iemocap/"
LICENCE = "IEMOCAP release form (signed, research only)"
LAYOUT = "Session1/ to Session5/, each with dialog/EmoEvaluation/, dialog/transcriptions/ and sentences/wav/"
EMOTIONS = {"neu": "neu", "hap": "hap", "exc": "hap", "ang": "ang", "sad": "sad"}
"""Label of the corpus -> class of SUPERB."""
SESSIONS = (1, 2, 3, 4, 5)
# Utterances of the four classes in each session; together the 5531 that are usually reported for this setting: 1103
# angry, 1636 happy or excited, 1084 sad, 1708 neutral.
PER_SESSION = {1: 1085, 2: 1023, 3: 1151, 4: 1031, 5: 1241}
DEV_SHARE = 0.2  # S3PRL `downstream/emotion/config.yaml`, valid_ratio
_LINE = re.compile(r"\[[\d.]+ - [\d.]+\]\t(?P<id>\S+)\t(?P<emotion>\w+)\t")
_TRANSCRIPT = re.compile(r"(?P<id>Ses\S+) \[[\d.]+-[\d.]+\]: ?(?P<text>.*)")


EXPECTED = {
    f"fold{number}_test": Count(utterances, {"emotion": 4, "speaker": 2}) for number, utterances in PER_SESSION.items()
}
"""Each session once; the other splits are made of the same."""


def read(source: Path, config: NoSettings) -> Reading:
    """Lists the folds."""
    del config
    root = find_root(source, ("Session1", "Session2"), name=NAME, layout=LAYOUT)
    sessions = {number: list(_read_session(root / f"Session{number}")) for number in SESSIONS}
    folds: dict[str, Sequence[Item]] = {}
    for test in SESSIONS:
        rest = [item for number in SESSIONS if number != test for item in sessions[number]]
        order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(0)).tolist()
        size = int((1 - DEV_SHARE) * len(rest))
        folds[f"fold{test}_train"] = _sorted(rest[place] for place in order[:size])
        folds[f"fold{test}_dev"] = _sorted(rest[place] for place in order[size:])
        folds[f"fold{test}_test"] = sessions[test]
    first = {part: folds[f"fold1_{part}"] for part in ("train", "dev", "test")}
    everything = [item for items in sessions.values() for item in items]
    notes = note("utterances without a transcript", [item.id for item in everything if not item.labels.get("text")])
    return Reading({**first, **folds}, EXPECTED, notes + untrained(first, ("emotion",)))


def _sorted(items: Iterable[Item]) -> list[Item]:
    return sorted(items, key=lambda item: item.id)


def _read_session(folder: Path) -> Iterator[Item]:
    """The utterances of one of the four classes, sorted by dialogue and then as the dialogue goes."""
    evaluations = sorted(p for p in (folder / "dialog/EmoEvaluation").glob("*.txt") if not p.name.startswith("."))
    for evaluation in evaluations:
        texts = _read_texts(folder / "dialog/transcriptions" / evaluation.name)
        for where, line in read_lines(evaluation):
            if not line.startswith("["):
                continue  # what single listeners said
            found = _LINE.match(line)
            if found is None:
                raise ManifestError(f"{where} is no '[begin - end]', id and emotion: fetch the file again.")
            if found["emotion"] in EMOTIONS:
                yield _item(folder, evaluation.stem, found["id"], found["emotion"], texts)


def _item(folder: Path, dialogue: str, name: str, emotion: str, texts: dict[str, str]) -> Item:
    labels = {
        "emotion": EMOTIONS[emotion],
        "category": emotion,
        "session": folder.name,
        "act": "improvised" if "impro" in dialogue else "scripted",
        "speaker": name[:5] + name.rsplit("_", 1)[-1][:1],
        "language": "en",
        **({"text": texts[name]} if name in texts else {}),
    }
    return Item(name, str(folder / "sentences/wav" / dialogue / f"{name}.wav"), labels)


def _read_texts(path: Path) -> dict[str, str]:
    """Utterance -> transcript; lines about anything else are passed over."""
    if not path.is_file():
        return {}
    found = (_TRANSCRIPT.match(line) for _, line in read_lines(path))
    return {match["id"]: match["text"].strip() for match in found if match is not None}
