"""Corpora whose utterances say themselves what they are, such as those of ASVspoof, used as they are.

An utterance has the label `key` ('bonafide' or 'spoof') or `attack` ('bonafide', or the attack's name), and perhaps
`family`, `codec` and other conditions. Splits are the corpus's own. Further corpora are measured in the same run: their
utterances stand in `test` beside the corpus's own, told apart by the label `corpus`, and their ids begin with its name.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from downstreams.deepfake_detection.conditioning import finish, read_whole, take_segment
from downstreams.deepfake_detection.config import DeepfakeConfig, SpoofConfig
from downstreams.deepfake_detection.data import REVISION
from downstreams.deepfake_detection.plan import BONA_FIDE, SPLITS
from speechssl.data.corpus import Corpus, describe_utterance, open_corpus
from speechssl.data.flac import write_flac
from speechssl.data.seeds import derive_seed, make_generator
from speechssl.errors import ConfigError, ManifestError
from speechssl.files import replacing
from speechssl.progress import progress
from speechssl.task import TaskData
from speechssl.types import Utterance

logger = logging.getLogger(__name__)
SPOOF = "spoof"
"""The attack of an utterance whose corpus says no more."""
CHUNK = 32  # utterances that a process conditions at a time


@dataclass(frozen=True)
class Tested:
    """One corpus that is measured."""

    name: str
    """As the label `corpus` has it."""
    folder: str
    split: str
    fingerprint: str
    utterances: int
    bonafide: int


def read_labelled(corpus: Corpus, config: DeepfakeConfig) -> TaskData:
    """The splits of the corpus, and the tests of `test_corpora` behind its own.

    Raises:
        ManifestError: a split that is absent, an utterance without a label, or a split of one class.
        ConfigError: two corpora of one name.
    """
    absent = [split for split in SPLITS if split not in corpus.splits()]
    if absent:
        raise ManifestError(
            f"The corpus {corpus.root} has no split '{absent[0]}', but has {', '.join(corpus.splits())}: train on "
            f"another, and measure this one with `-s test_corpora=[{corpus.root}]`."
        )
    splits = {split: _read(corpus, split, corpus.name, config) for split in SPLITS}
    attacks = {u.labels["attack"] for u in splits["train"]}
    tested = [_told(corpus, "test", corpus.name, splits["test"])]
    test = list(splits["test"])
    for text in config.test_corpora:
        other, split = _open(text)
        name = other.name if split == "test" else f"{other.name}:{split}"
        if name in {one.name for one in tested}:
            raise ConfigError(f"`test_corpora` has '{name}' twice, or it is what is trained on: leave one of them out.")
        found = [replace(u, id=f"{name}/{u.id}") for u in _read(other, split, name, config)]
        tested.append(_told(other, split, name, found))
        test += found
    splits["test"] = [replace(u, labels={**u.labels, "seen": u.labels["attack"] in attacks}) for u in test]
    for split, utterances in splits.items():
        classes = Counter(bool(u.labels["attack"] == BONA_FIDE) for u in utterances)
        logger.info("%s: %d bona fide and %d spoofed utterances", split, classes[True], classes[False])
    return TaskData(splits, {"tested": tested})


def refuse_labelled(corpus: Corpus) -> None:
    """Sees that no spoofed speech is made from a corpus that has its own.

    Raises:
        ConfigError: the utterances have keys, or say which attack made them.
    """
    told = corpus.info.get("splits", {})
    if any({"key", "attack"} & set(split.get("labels", ())) for split in told.values()):
        raise ConfigError(
            f"The corpus {corpus.root} has spoofed speech of its own: run deepfake_detection_labelled, or set "
            "`labels=corpus`."
        )


def write_tested(path: Path, tested: Sequence[Tested]) -> None:
    """Writes which corpora were measured, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps([asdict(one) for one in tested], indent=1) + "\n", encoding="utf-8")


def _open(text: str) -> tuple[Corpus, str]:
    """'FOLDER' or 'FOLDER:SPLIT'."""
    folder, _, split = text.rpartition(":")
    if folder and not Path(text).is_dir():
        return open_corpus(folder), split
    return open_corpus(text), "test"


def _told(corpus: Corpus, split: str, name: str, utterances: Sequence[Utterance]) -> Tested:
    real = sum(u.labels["attack"] == BONA_FIDE for u in utterances)
    return Tested(name, str(corpus.root), split, corpus.fingerprint, len(utterances), real)


def _read(corpus: Corpus, split: str, name: str, config: DeepfakeConfig) -> list[Utterance]:
    utterances = corpus.utterances(split)
    attacks = [_attack(u) for u in utterances]
    untold = [u for u, attack in zip(utterances, attacks, strict=True) if attack is None]
    if untold:
        raise ManifestError(
            f"{describe_utterance(corpus.root, untold[0].id)} is the first of {len(untold)} in '{split}' whose label "
            f"`key` is neither '{BONA_FIDE}' nor '{SPOOF}', and that have no `attack`: prepare a corpus that says them."
        )
    if len({attack == BONA_FIDE for attack in attacks}) < 2:
        only = "bona fide" if attacks and attacks[0] == BONA_FIDE else "spoofed"
        raise ManifestError(
            f"'{split}' of {corpus.root} has {len(utterances)} utterances, and all of them are {only}: both classes "
            "are needed to tell them apart."
        )
    found = [_labelled(u, str(attack), name) for u, attack in zip(utterances, attacks, strict=True)]
    return _condition(found, corpus, split, config.spoof) if config.condition else found


def _attack(utterance: Utterance) -> str | None:
    """None where the labels do not tell."""
    key, attack = utterance.labels.get("key"), utterance.labels.get("attack")
    if key is None:
        return None if attack is None else str(attack)
    if key == BONA_FIDE:
        return BONA_FIDE
    return str(attack or SPOOF) if key == SPOOF else None


def _labelled(utterance: Utterance, attack: str, corpus: str) -> Utterance:
    labels: dict[str, Any] = {
        "family": attack,
        **utterance.labels,
        "attack": attack,
        "seen": True,
        "corpus": corpus,
        "original": f"{corpus}/{utterance.labels.get('original', utterance.id)}",
    }
    return replace(utterance, labels=labels)


def _condition(utterances: Sequence[Utterance], corpus: Corpus, split: str, spoof: SpoofConfig) -> list[Utterance]:
    """Brings utterances to the common form, in files below the corpus; those with too little speech are counted."""
    from joblib import Parallel, delayed, parallel_config

    settings = json.dumps([REVISION, asdict(spoof.conditioning), spoof.seed], sort_keys=True)
    folder = corpus.root / "deepfake" / f"conditioned-{derive_seed(settings):016x}" / split
    heard = [replace(u, path=str(folder / _conditioned_name(u)), start=0.0) for u in utterances]
    pairs = [(u, h.path) for u, h in zip(utterances, heard, strict=True) if not Path(h.path).exists()]
    chunks = [pairs[i : i + CHUNK] for i in range(0, len(pairs), CHUNK)]
    with (
        progress("Conditioning", len(pairs), unit="utterances") as advance,
        parallel_config("loky", inner_max_num_threads=1),
    ):
        pool = Parallel(n_jobs=spoof.processes, return_as="generator_unordered")
        for count in pool(delayed(_condition_all)(chunk, spoof) for chunk in chunks):
            advance(count)
    whole = [replace(u, duration=spoof.conditioning.seconds) for u in heard if Path(u.path).exists()]
    lost = Counter(bool(u.labels["attack"] == BONA_FIDE) for u in heard if not Path(u.path).exists())
    if lost:
        logger.warning(
            "%d bona fide and %d spoofed utterances of '%s' of %s hold less than %g s of speech and are left out",
            lost[True], lost[False], split, corpus.root, spoof.conditioning.seconds,
        )  # fmt: skip
    return whole


def _conditioned_name(utterance: Utterance) -> str:
    """Of the file, which another stretch of audio under the same id does not share."""
    stretch = derive_seed(utterance.id, utterance.path, str(utterance.start), str(utterance.duration))
    return f"{utterance.id.replace('/', '-')}-{stretch:016x}.flac"


def _condition_all(pairs: Sequence[tuple[Utterance, str]], spoof: SpoofConfig) -> int:
    for utterance, path in pairs:
        waveform, rate = read_whole(utterance)
        generator = make_generator(spoof.seed, "condition", utterance.id)
        segment = take_segment(waveform, rate, spoof.conditioning, generator)
        finished = finish(segment, spoof.conditioning, generator)
        if finished is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_flac(Path(path), finished.numpy())
    return len(pairs)
