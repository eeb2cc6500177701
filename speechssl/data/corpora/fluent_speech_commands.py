"""Fluent Speech Commands: commands to a smart home (Lugosch et al. 2019, arXiv:1904.03670), for intent classification.

An intent is an `action`, an `object` and a `location`; SUPERB counts it as right if all three are. Splits are those of
data/{train,valid,test}_data.csv; classes are those of train (S3PRL `downstream/fluent_commands/{dataset,expert}.py`).

Lhotse's `prepare_slu` reads the same files with pandas, without the speakers, and gives utterances numbers as ids.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from speechssl.data.corpora.base import (
    Count,
    Item,
    NoSettings,
    Reading,
    find_root,
    need_file,
    note,
    read_table,
    untrained,
)

NAME = "Fluent Speech Commands"
HOMEPAGE = "https://fluent.ai/fluent-speech-commands-a-dataset-for-spoken-language-understanding-research/"
LICENCE = "Fluent Speech Commands Public License (academic research only)"
LAYOUT = "data/train_data.csv, data/valid_data.csv, data/test_data.csv and wavs/speakers/, as the archive unpacks"
SLOTS = ("action", "object", "location")
_CLASSES = {"action": 6, "object": 14, "location": 4}
# Utterances and classes: Hugging Face `datasets/superb/dataset_infos.json`, config 'ic'. Speakers and hours: Lugosch et
# al. 2019, table 2.
EXPECTED = {
    "train": Count(23_132, {"speaker": 77, **_CLASSES}, 14.7),
    "dev": Count(3118, {"speaker": 10}, 1.9),
    "test": Count(3793, {"speaker": 10}, 2.4),
}
LISTS = {"train": "train_data.csv", "dev": "valid_data.csv", "test": "test_data.csv"}


def read(source: Path, config: NoSettings) -> Reading:
    """Lists the three splits."""
    del config
    root = find_root(source, ("data/train_data.csv",), name=NAME, layout=LAYOUT)
    why = "it comes in the archive of the corpus, in data/"
    splits = {split: list(_read(need_file(root / "data" / name, why), root)) for split, name in LISTS.items()}
    empty = [item.id for items in splits.values() for item in items if not item.labels["text"]]
    return Reading(splits, EXPECTED, note("empty transcripts", empty) + untrained(splits, SLOTS))


def _read(path: Path, root: Path) -> Iterator[Item]:
    for _, row in read_table(path, ("path", "speakerId", "transcription", *SLOTS)):
        labels = {"text": row["transcription"].strip(), "speaker": row["speakerId"], "language": "en"}
        yield Item(
            PurePosixPath(row["path"]).stem, str(root / row["path"]), {**labels, **{slot: row[slot] for slot in SLOTS}}
        )
