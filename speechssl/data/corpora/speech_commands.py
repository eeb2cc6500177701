"""Speech Commands v0.01: one-second commands, as SUPERB's keyword spotting takes them (Warden 2018, arXiv:1804.03209).

12 classes: the ten command words, `_unknown_` (the other twenty words) and `_silence_` (background noise). Rules of
S3PRL `downstream/speech_commands/{dataset,expert}.py`: train and dev are split by a hash of the speaker, which gives
the published validation_list.txt and testing_list.txt; what the latter names is not used; the six noise files are in
train and in dev alike; test is the separate test set, with its own `_unknown_` and `_silence_`.

S3PRL draws a random second of a noise file at each visit, and so often that `_silence_` is as frequent as any other
class. Here a noise file is cut into consecutive seconds, which a task that balances its classes draws from.

Lhotse's `prepare_speechcommands` has no 12 classes and puts all noise but one file into train; what it says of
speakers, words and the files of each split is the same, which the tests hold.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from speechssl.data.corpora.base import (
    Count,
    Item,
    Reading,
    audio_stems,
    find_root,
    need_file,
    note,
    subfolders,
    untrained,
)
from speechssl.errors import ManifestError
from speechssl.text_files import read_lines

NAME = "Speech Commands"
HOMEPAGE = "https://www.tensorflow.org/datasets/catalog/speech_commands"
LICENCE = "CC-BY-4.0"
LAYOUT = "speech_commands_v0.01/ and speech_commands_test_set_v0.01/, each archive unpacked into a folder of its name"
# Hugging Face `datasets/superb/dataset_infos.json`, config 'ks'; it has the six noise files in train only, S3PRL in dev
# too. `keyword`: S3PRL `downstream/speech_commands/dataset.py`, CLASSES.
EXPECTED = {
    "train": Count(51_094, {"keyword": 12}),
    "dev": Count(6798 + 6, {"keyword": 12}),
    "test": Count(3081, {"keyword": 12}),
}
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE, NOISE = "_unknown_", "_silence_", "_background_noise_"
PIECE = 1.0  # seconds, as long as a command
_FILE = re.compile(r"(?:(?P<word>[a-z]+)_)?(?P<speaker>[0-9a-f]+)_nohash_\d+")


@dataclass(frozen=True)
class SpeechCommandsConfig:
    """Which release."""

    version: Literal["0.01", "0.02"] = "0.01"
    """SUPERB's is 0.01."""


CONFIG = SpeechCommandsConfig()


def read(source: Path, config: SpeechCommandsConfig) -> Reading:
    """Lists the commands of the archive and of its test set."""
    names = f"speech_commands_v{config.version}", f"speech_commands_test_set_v{config.version}"
    root = find_root(source, names[:1], name=f"{NAME} v{config.version}", layout=LAYOUT)
    main, test = (root / name for name in names)
    if not test.is_dir():
        raise ManifestError(f"{root} has no {test.name}/: SUPERB's test set is an archive of its own, unpack it there.")
    where = "it comes in the same archive as the audio, unpack that again"
    dev_names = _names(need_file(main / "validation_list.txt", where), main)
    held_out = _names(need_file(main / "testing_list.txt", where), main)
    everything = [
        f"{word.name}/{stem}" for word in subfolders(main) if word.name != NOISE for stem in audio_stems(word)
    ]
    kept = frozenset(dev_names).union(held_out)
    noise = list(_noise(main / NOISE))
    splits = {
        "train": [_command(main, name) for name in everything if name not in kept] + noise,
        "dev": [_command(main, name) for name in dev_names] + noise,
        "test": list(_test_set(test)),
    }
    notes = note("no background noise, so no _silence_ in train", [] if noise else [str(main / NOISE)])
    return Reading(splits, EXPECTED if config.version == "0.01" else {}, notes + untrained(splits, ("keyword",)))


def _names(path: Path, main: Path) -> list[str]:
    """What a list names, as 'word/stem', sorted."""
    names = []
    for where, line in read_lines(path):
        word, _, file = line.strip().partition("/")
        if not file.endswith(".wav") or not (main / word).is_dir():
            raise ManifestError(f"{where} is '{line.strip()}', but must name a file such as bed/0a7c2a8d_nohash_0.wav.")
        names.append(f"{word}/{file.removesuffix('.wav')}")
    return sorted(names)


def _command(main: Path, name: str) -> Item:
    word, _, stem = name.partition("/")
    labels = {"keyword": word if word in WORDS else UNKNOWN, "text": word, "language": "en", **_speaker(stem)}
    return Item(f"{word}-{stem}", str(main / f"{name}.wav"), labels)


def _noise(folder: Path) -> Iterator[Item]:
    for stem in audio_stems(folder):
        yield Item(f"{SILENCE}-{stem}", str(folder / f"{stem}.wav"), {"keyword": SILENCE, "text": ""}, pieces=PIECE)


def _test_set(test: Path) -> Iterator[Item]:
    for folder in subfolders(test):
        if folder.name not in (*WORDS, UNKNOWN, SILENCE):
            raise ManifestError(f"{folder} is no class of the test set: unpack the archive {test.name} into {test}.")
        for stem in audio_stems(folder):
            labels = {"keyword": folder.name, "text": "" if folder.name == SILENCE else folder.name, **_speaker(stem)}
            found = _FILE.fullmatch(stem)
            if folder.name == UNKNOWN and found is not None:
                labels["text"] = found["word"] or ""
            if folder.name != SILENCE:
                labels["language"] = "en"
            yield Item(f"{folder.name}-{stem}", str(folder / f"{stem}.wav"), labels)


def _speaker(stem: str) -> dict[str, str]:
    found = _FILE.fullmatch(stem)
    return {} if found is None else {"speaker": found["speaker"]}
