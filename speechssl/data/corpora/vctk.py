"""VCTK 0.92: English read by 110 speakers of many accents (Yamagishi, Veaux and MacDonald 2019).

Each speaker's utterances that have a transcript are put in order: the last five are `dev`, the five before them `test`,
as in S3PRL's any-to-any conversion (the lists of `a2a-vc-vctk/data/lists`, made of the release before; theirs count
utterances of that release's folders, so the names are not everywhere the same). The lists `conversion_dev` and
`conversion_test` send each utterance to ten other speakers, which is a choice of ours. The first 24 sentences are the
same for all speakers; those of dev and test are not.

Ids, speakers and transcripts are those of Lhotse's recipe (`lhotse/recipes/vctk.py`), but for the microphone in the
ids. Its `prepare_vctk` is not called: it opens all 88 000 headers to list one microphone's half. As there, p315 has no
transcripts and is left out, as are the utterances of p362 without audio, and of p280 there is no second microphone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from speechssl.data.corpora.base import Count, Item, Reading, audio_stems, find_root, need_file, note, subfolders
from speechssl.data.pairs import LISTS, list_conversions
from speechssl.errors import ManifestError
from speechssl.text_files import read_lines

NAME = "VCTK"
HOMEPAGE = "https://datashare.ed.ac.uk/handle/10283/3443"
LICENCE = "CC-BY-4.0"
LAYOUT = "wav48_silence_trimmed/, txt/ and speaker-info.txt of VCTK-Corpus-0.92"
AUDIO = "wav48_silence_trimmed"
HELD_OUT = 5
"""Utterances of each speaker in dev, and as many in test."""
TARGETS = 10
PARTLY_SILENT = ("p362",)
"""Speakers some of whose transcripts the publisher has no audio of."""
# Publisher's page: 110 speakers, of whom p315 has no transcripts. The second microphone lacks p280.
EXPECTED = {
    "train": Count(0, {"speaker": 109}),
    "dev": Count(545, {"speaker": 109}),
    "test": Count(545, {"speaker": 109}),
}


@dataclass(frozen=True)
class VctkConfig:
    """Which recordings."""

    microphone: Literal["mic1", "mic2"] = "mic1"
    """mic1 is omnidirectional (DPA 4035), mic2 has a wide band (Sennheiser MKH 800)."""


CONFIG = VctkConfig()


def read(source: Path, config: VctkConfig) -> Reading:
    """Lists the transcripts and where their audio should be."""
    root = find_root(source, (AUDIO,), name=NAME, layout=LAYOUT)
    people = _read_people(need_file(root / "speaker-info.txt", "it comes in the archive of the corpus"))
    splits: dict[str, list[Item]] = {"train": [], "dev": [], "test": []}
    silent: list[str] = []
    speakers = [folder.name for folder in subfolders(root / "txt")]
    for speaker in speakers:
        if (speaker, config.microphone) == ("p280", "mic2"):
            continue
        items = _read_speaker(root, speaker, config.microphone, people.get(speaker, {}), silent)
        first = max(0, len(items) - 2 * HELD_OUT)
        splits["train"] += items[:first]
        splits["test"] += items[first : first + HELD_OUT]
        splits["dev"] += items[first + HELD_OUT :]
    count = 109 - (config.microphone == "mic2")
    expected = {split: Count(HELD_OUT * count * (split != "train"), {"speaker": count}) for split in splits}
    files = {}
    for split in ("dev", "test"):
        sources = [(item.id, str(item.labels["speaker"])) for item in splits[split]]
        targets = sorted({str(item.labels["speaker"]) for item in splits["train"]})
        files[LISTS[split]] = list_conversions(sources, targets, most=TARGETS)
    untold = [folder.name for folder in subfolders(root / AUDIO) if folder.name not in speakers]
    notes = note("transcripts that the publisher has no audio of", silent)
    return Reading(splits, expected, notes + note("speakers without transcripts", untold), files)


def _read_speaker(
    root: Path, speaker: str, microphone: str, person: Mapping[str, object], silent: list[str]
) -> list[Item]:
    """The utterances of a speaker in order; the known ones without audio go to `silent`."""
    present = set(audio_stems(root / AUDIO / speaker, ".flac")) if speaker in PARTLY_SILENT else set()
    items = []
    for name in audio_stems(root / "txt" / speaker, ".txt"):
        if not name.startswith(f"{speaker}_"):
            raise ManifestError(f"{root / 'txt' / speaker / name}.txt is not of {speaker}: fetch the corpus again.")
        if speaker in PARTLY_SILENT and f"{name}_{microphone}" not in present:
            silent.append(name)
            continue
        path = root / AUDIO / speaker / f"{name}_{microphone}.flac"
        text = " ".join(line.strip() for _, line in read_lines(root / "txt" / speaker / f"{name}.txt"))
        items.append(Item(name, str(path), {"text": text, "speaker": speaker, "language": "en", **person}))
    return items


def _read_people(path: Path) -> dict[str, dict[str, object]]:
    """Speaker -> gender, age, accent and region of speaker-info.txt; older copies leave out the 'p'."""
    people = {}
    for number, (where, line) in enumerate(read_lines(path)):
        values = line.split("(")[0].split()  # behind the bracket are comments
        if number == 0:
            if values[:4] != ["ID", "AGE", "GENDER", "ACCENTS"]:
                raise ManifestError(f"{where} must begin with ID AGE GENDER ACCENTS: is this the corpus's own file?")
            continue
        if len(values) < 3 or not values[1].isdigit() or values[2] not in ("F", "M"):
            raise ManifestError(f"{where} is '{line.strip()}', but must be a speaker, an age and F or M.")
        person: dict[str, object] = {"gender": values[2].lower(), "age": int(values[1])}
        if len(values) > 3:
            person["accent"] = values[3]
        if len(values) > 4:
            person["region"] = " ".join(values[4:])
        people[f"p{values[0]}" if values[0].isdigit() else values[0]] = person
    return people
