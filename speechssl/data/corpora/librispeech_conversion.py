"""LibriSpeech for conversion as in kNN-VC (Baas et al. 2023, arXiv:2305.18975): everyone to everyone.

`train` is train-clean-100, on which kNN-VC trains its vocoder. `dev` are utterances of dev-clean, `test` of test-clean,
five of each of the 40 speakers; everything else of the two parts is `reference`, the speech that a target's frames are
taken from (about 8 minutes of each). The lists `conversion_dev` and `conversion_test` send each utterance to each of
the other 39 speakers, 7800 conversions, all sources once before any twice.

The paper measures on dev-clean and test-clean too, but its lists are not in its repository. How many utterances there
are of each speaker, and which, is a choice of ours: they are taken by the hashes of their ids, so that all who prepare
the corpus convert the same.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechssl.data.corpora import librispeech
from speechssl.data.corpora.base import Count, Item, Reading, find_root
from speechssl.data.pairs import LISTS, list_conversions
from speechssl.errors import ConfigError, ManifestError

NAME = "LibriSpeech (conversion)"
HOMEPAGE = librispeech.HOMEPAGE
LICENCE = librispeech.LICENCE
LAYOUT = "train-clean-100/, dev-clean/ and test-clean/ of LibriSpeech, as the archives unpack"
PARTS = {"dev": "dev-clean", "test": "test-clean"}
# Five of 40 speakers each; LibriSpeech's counts for the rest.
EXPECTED = {
    "train": librispeech.EXPECTED["train-clean-100"],
    "dev": Count(200, {"speaker": 40}),
    "test": Count(200, {"speaker": 40}),
    "reference": Count(2703 + 2620 - 400, {"speaker": 80}),
}


@dataclass(frozen=True)
class ConversionPairsConfig:
    """How many are converted."""

    utterances: int = 5
    """Of each speaker."""

    def __post_init__(self) -> None:
        if self.utterances < 1:
            raise ConfigError(f"`utterances` must be 1 or more, but is {self.utterances}.")


CONFIG = ConversionPairsConfig()


def read(source: Path, config: ConversionPairsConfig) -> Reading:
    """Lists sources, references and conversions."""
    root = find_root(source, tuple(PARTS.values()), name=NAME, layout=LAYOUT)
    whole = librispeech.read(root, librispeech.CONFIG)
    if missing := [part for split, part in PARTS.items() if split not in whole.splits]:
        raise ManifestError(f"{root} has no {missing[0]}/: unpack it beside the other parts of LibriSpeech.")
    splits: dict[str, Sequence[Item]] = {"train": whole.splits.get("train", ())}
    files, reference = {}, []
    for split in PARTS:
        taken = _choose(whole.splits[split], config.utterances)
        splits[split] = [item for item in whole.splits[split] if item.id in taken]
        reference += [item for item in whole.splits[split] if item.id not in taken]
        sources = [(item.id, str(item.labels["speaker"])) for item in _in_turn(splits[split])]
        files[LISTS[split]] = list_conversions(sources, sorted({speaker for _, speaker in sources}))
    splits["reference"] = reference
    count = 40 * config.utterances
    expected: Mapping[str, Count] = {
        **EXPECTED,
        **{split: Count(count, {"speaker": 40}) for split in PARTS},
        "reference": Count(2703 + 2620 - 2 * count, {"speaker": 80}),
    }
    kept = tuple(n for n in whole.notes if n.what.split(":")[0] in ("train", *PARTS))
    return Reading({s: items for s, items in splits.items() if items}, expected, kept, files)


def _choose(items: Iterable[Item], count: int) -> set[str]:
    """Ids of `count` utterances of each speaker, the first by their hashes."""
    spoken = defaultdict(list)
    for item in items:
        spoken[item.labels["speaker"]].append(item.id)
    return {name for names in spoken.values() for name in sorted(names, key=_hash)[:count]}


def _in_turn(items: Iterable[Item]) -> list[Item]:
    """One utterance of each speaker, then the next of each, so that neighbours differ in voice."""
    spoken: defaultdict[str, list[Item]] = defaultdict(list)
    for item in items:
        spoken[str(item.labels["speaker"])].append(item)
    longest = max(map(len, spoken.values()), default=0)
    return [spoken[s][number] for number in range(longest) for s in sorted(spoken) if number < len(spoken[s])]


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
