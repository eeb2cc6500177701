"""Labelled utterances and the classes that training has."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from speechssl.classification.config import ClassificationConfig
from speechssl.data.corpus import Corpus
from speechssl.data.seeds import derive_seed
from speechssl.errors import ManifestError
from speechssl.types import Utterance

logger = logging.getLogger(__name__)
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Classes:
    """The classes of each field, sorted; scores of all fields stand side by side."""

    of_field: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return sum(len(classes) for classes in self.of_field.values())

    def sizes(self) -> list[int]:
        """Classes of each field."""
        return [len(classes) for classes in self.of_field.values()]

    def encode(self, utterance: Utterance) -> list[int]:
        """The class of each field."""
        return [places[label_of(utterance, name)] for name, places in self._places.items()]

    @cached_property
    def _places(self) -> Mapping[str, Mapping[str, int]]:
        return {name: {c: k for k, c in enumerate(classes)} for name, classes in self.of_field.items()}


def label_of(utterance: Utterance, name: str) -> str:
    """A label as text; '' where there is none."""
    value = utterance.labels.get(name)
    return "" if value is None else str(value).strip()


def read_splits(
    corpus: Corpus, config: ClassificationConfig, names: Mapping[str, str] | None = None
) -> dict[str, list[Utterance]]:
    """The labelled utterances of 'train', 'dev' and 'test' that the config asks for.

    Args:
        names: 'train', 'dev', 'test' -> the split of the corpus, where it has another name.

    Raises:
        ManifestError: as `choose_labelled`, or there is no such split.
    """
    everything = {split: corpus.utterances((names or {}).get(split, split)) for split in SPLITS}
    return choose_labelled(everything, config, corpus.root)


def choose_labelled(
    everything: Mapping[str, Sequence[Utterance]], config: ClassificationConfig, root: Path
) -> dict[str, list[Utterance]]:
    """The labelled ones of all utterances, as many as the config asks for.

    Args:
        root: folder of the corpus, for messages.

    Raises:
        ManifestError: a split without a labelled utterance, or whose labels never occur in training.
    """
    splits: dict[str, list[Utterance]] = {}
    for split, utterances in everything.items():
        labelled = [u for u in utterances if all(label_of(u, name) for name in config.fields)]
        kept = [u for u in labelled if config.languages is None or u.labels.get("language") in config.languages]
        if not kept:
            raise ManifestError(
                f"The corpus {root} has no utterance in '{split}' with {_list(config.fields)}"
                f"{'' if config.languages is None else ' in ' + _list(config.languages)}: its labels are "
                f"{_list(sorted({key for u in utterances for key in u.labels}))}."
            )
        limit = config.max_train_utterances if split == "train" else config.max_eval_utterances
        chosen = _subset(kept, config.fields, limit)
        message = "classification %s: %d utterances of %d (%d without a label, %d not asked for)"
        logger.info(
            message, split, len(chosen), len(utterances), len(utterances) - len(labelled), len(labelled) - len(chosen)
        )
        splits[split] = chosen
    return {**splits, **_with_known_classes(root, splits, config)}


def make_classes(utterances: Iterable[Utterance], fields: Sequence[str]) -> Classes:
    """All classes that occur, sorted."""
    found: dict[str, set[str]] = {name: set() for name in fields}
    for utterance in utterances:
        for name in fields:
            found[name].add(label_of(utterance, name))
    return Classes({name: tuple(sorted(classes)) for name, classes in found.items()})


def _with_known_classes(
    root: Path, splits: Mapping[str, Sequence[Utterance]], config: ClassificationConfig
) -> dict[str, list[Utterance]]:
    """Dev and test, whose classes all occur in training."""
    trained = make_classes(splits["train"], config.fields).of_field
    for name, classes in trained.items():
        if len(classes) < 2:
            raise ManifestError(f"The corpus {root} has one class of '{name}' in 'train': {classes[0]}.")
    known: dict[str, list[Utterance]] = {}
    for split in SPLITS[1:]:
        known[split] = [u for u in splits[split] if all(label_of(u, n) in trained[n] for n in config.fields)]
        left = len(splits[split]) - len(known[split])
        if left and not (config.leave_out_unknown and known[split]):
            unknown = {label_of(u, n) for u in splits[split] for n in config.fields if label_of(u, n) not in trained[n]}
            raise ManifestError(
                f"The corpus {root} has {left} utterances in '{split}' of classes without a training example: "
                f"{_list(sorted(unknown)[:5])}. Add some to 'train', or set `leave_out_unknown=true`."
            )
        if left:
            logger.warning("classification %s: %d utterances of classes that training lacks are left out", split, left)
    return known


def _subset(utterances: Sequence[Utterance], fields: Sequence[str], limit: int | None) -> list[Utterance]:
    """At most `limit` utterances per class: the same ones on every machine, in the order of the corpus."""
    if limit is None:
        return list(utterances)
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for utterance in utterances:
        groups[tuple(label_of(utterance, name) for name in fields)].append(utterance.id)
    chosen: set[str] = set()
    for ids in groups.values():
        chosen.update(sorted(ids, key=lambda name: derive_seed("class subset", name))[:limit])
    return [u for u in utterances if u.id in chosen]


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
