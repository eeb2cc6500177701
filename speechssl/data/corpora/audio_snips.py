"""Audio SNIPS: requests to an assistant by 16 synthetic voices (Lai et al. 2021, arXiv:2010.13105), for slot filling.

The source is what S3PRL's `preprocess/snips_prepare_data.sh` makes: all.iob.snips.txt and the folders train, valid,
test. SUPERB trains on eight voices, chooses on four and tests on four others (`downstream/ctc/snips.yaml`).

`slots` is the text with its slots between tags, `B-artist WESTBAM E-artist`: the tokens that S3PRL's
CharacterTextSlotEncoder spells (`downstream/ctc/text.py`). Words are made plain first, and punctuation leaves with its
tag, as `problem/asr/superb_sf.py` does; where a slot ended in punctuation, the encoder alone would lose its end.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from speechssl.data.corpora.base import (
    Count,
    Item,
    NoSettings,
    Reading,
    find_root,
    note,
    untrained,
)
from speechssl.errors import ManifestError
from speechssl.text_files import read_lines

NAME = "Audio SNIPS"
HOMEPAGE = "https://github.com/aws-samples/aws-lex-noisy-spoken-language-understanding"
LICENCE = "see LICENSE of the repository; texts CC0-1.0"
LAYOUT = "all.iob.snips.txt and train/, valid/, test/ with <voice>-snips-<split>-<number>.wav (S3PRL's SNIPS folder)"
VOICES = {
    "train": ("Ivy", "Joanna", "Joey", "Justin", "Kendra", "Kimberly", "Matthew", "Salli"),
    "dev": ("Aditi", "Amy", "Geraint", "Nicole"),
    "test": ("Brian", "Emma", "Raveena", "Russell"),
}
FOLDERS = {"train": "train", "dev": "valid", "test": "test"}
# 13 084, 700 and 700 requests (Goo et al. 2018, NAACL, table 1), each spoken by every voice of the split.
EXPECTED = {
    "train": Count(8 * 13_084, {"speaker": 8, "intent": 7}),
    "dev": Count(4 * 700, {"speaker": 4}),
    "test": Count(4 * 700, {"speaker": 4}),
}
PUNCTUATION = "?!.,;-–…"
_REWRITTEN = {"楽園追放": "EXPELLED", "官方杂志": "", "–": "-", "&": " AND ", '"': " "}
_PLAIN = str.maketrans(
    {c: unicodedata.normalize("NFD", c)[0] for c in "ÁÃÄÅÇÈÉÊËÍÏÒÓÔÖÚÛĘŃŌŞŪ"} | {"Æ": "A", "Ð": "D", "Ø": "O"}
)


def read(source: Path, config: NoSettings) -> Reading:
    """Lists what the voices of each split say."""
    del config
    root = find_root(source, ("all.iob.snips.txt",), name=NAME, layout=LAYOUT)
    suffix = ".wav" if any((root / "train").glob("*.wav")) else ".mp3"
    splits: dict[str, list[Item]] = {split: [] for split in VOICES}
    for split, item in _read(root, suffix):
        splits[split].append(item)
    splits = {split: sorted(items, key=lambda item: item.id) for split, items in splits.items() if items}
    listed = {Path(item.path).name for items in splits.values() for item in items}
    empty = [item.id for items in splits.values() for item in items if not item.labels["text"]]
    strangers = [str(p) for split in splits for p in _of_voices(root, split, suffix) if p.name not in listed]
    notes = note("empty transcripts", empty) + note("audio without a transcript", sorted(strangers))
    return Reading(splits, EXPECTED, notes + untrained(splits, ("intent",)))


def tag_slots(words: Sequence[str], tags: Sequence[str]) -> str:
    """Words with each slot between its tags.

    Args:
        tags: of each word, 'O' outside of slots; neighbours of the same tag are one slot, unless the second begins
            with 'B-'.
    """
    parts: list[str] = []
    for place, (word, tag) in enumerate(zip(words, tags, strict=True)):
        slot = re.sub("^[BI]-", "", tag)
        if slot != "O" and (place == 0 or _begins(tags[place - 1], tag)):
            parts.append(f"B-{slot}")
        parts.append(word)
        if slot != "O" and (place == len(words) - 1 or _begins(tag, tags[place + 1])):
            parts.append(f"E-{slot}")
    return " ".join(parts)


def _begins(before: str, tag: str) -> bool:
    return tag.startswith("B-") or re.sub("^[BI]-", "", before) != re.sub("^[BI]-", "", tag)


def _of_voices(root: Path, split: str, suffix: str) -> Iterator[Path]:
    """The audio files of the voices that the split takes."""
    files = (root / FOLDERS[split]).glob(f"*{suffix}")
    return (path for path in files if path.name.split("-")[0] in VOICES[split])


def _read(root: Path, suffix: str) -> Iterator[tuple[str, Item]]:
    """Split and utterance, of those that SUPERB uses."""
    split_of = {folder: split for split, folder in FOLDERS.items()}
    for where, line in read_lines(root / "all.iob.snips.txt"):
        sentence, _, annotation = line.strip().partition("\t")
        name, _, sentence = sentence.partition(" ")
        tags = annotation.split()
        # most words have a tag as they stand, the others once they are plain
        words = next((w for w in (sentence.split(), _simplify(sentence).split()) if len(w) == len(tags)), [])
        parts = name.split("-")
        if len(parts) != 4 or parts[2] not in split_of or len(words) < 2:
            raise ManifestError(
                f"{where} must be an id such as Ivy-snips-train-0, BOS, words, EOS, a tab and a tag for each, "
                "the intent last: make the list again."
            )
        voice, split = parts[0], split_of[parts[2]]
        if voice not in VOICES[split]:
            continue
        said, slots = _plain(words[1:-1], tags[1:-1])
        labels = {
            "text": " ".join(said),
            "slots": tag_slots(said, slots),
            "intent": tags[-1],
            "speaker": voice,
            "language": "en",
        }
        yield split, Item(name, str(root / FOLDERS[split] / f"{name}{suffix}"), labels)


def _plain(words: Sequence[str], tags: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words without accents and punctuation, and the tag of each."""
    said: list[str] = []
    slots: list[str] = []
    for word, tag in zip(words, tags, strict=True):
        kept = [part for part in _simplify(word).split() if part not in PUNCTUATION]
        said += kept
        slots += [tag] * len(kept)
    return said, slots


def _simplify(text: str) -> str:
    for old, new in _REWRITTEN.items():
        text = text.replace(old, new)
    return text.translate(_PLAIN)
