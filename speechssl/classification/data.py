"""Labelled utterances and the classes that training has."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from speechssl.classification.config import ClassificationConfig
from speechssl.data.corpus import Corpus, where_is
from speechssl.data.seeds import derive_seed
from speechssl.errors import ManifestError
from speechssl.types import Utterance

logger = logging.getLogger(__name__)
SPLITS = ("train", "dev", "test")
NAMED = 5  # classes that a message names


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
    return choose_labelled(everything, config, corpus.root, names)


def choose_labelled(
    everything: Mapping[str, Sequence[Utterance]],
    config: ClassificationConfig,
    root: Path,
    names: Mapping[str, str] | None = None,
) -> dict[str, list[Utterance]]:
    """The labelled ones of all utterances, as many as the config asks for.

    Args:
        root: folder of the corpus, for messages.
        names: 'train', 'dev', 'test' -> the split of the corpus, where it has another name, for messages too.

    Raises:
        ManifestError: a split without a labelled utterance, or whose labels never occur in training.
    """
    splits: dict[str, list[Utterance]] = {}
    for split, utterances in everything.items():
        kept = find_labelled(utterances, config, root, (names or {}).get(split, split))
        limit = config.max_train_utterances if split == "train" else config.max_eval_utterances
        splits[split] = _subset(kept, config.fields, limit)
        logger.info("classification %s: %d utterances of %d", split, len(splits[split]), len(utterances))
    return {**splits, **_with_known_classes(root, splits, config, names or {})}


def find_labelled(
    utterances: Sequence[Utterance], config: ClassificationConfig, root: Path, split: str
) -> list[Utterance]:
    """Those with all labels and of the languages that the config asks for; the others are counted in the log.

    Args:
        split: as the corpus calls it, for messages.

    Raises:
        ManifestError: none is left.
    """
    labelled: list[Utterance] = []
    without: list[str] = []
    for utterance in utterances:
        if all(label_of(utterance, name) for name in config.fields):
            labelled.append(utterance)
        else:
            without.append(utterance.id)
    kept = [u for u in labelled if config.languages is None or u.labels.get("language") in config.languages]
    if not kept:
        if labelled:
            known = f"its languages there are {_list(sorted({str(u.labels.get('language')) for u in labelled}))}"
        else:
            known = f"its labels are {_list(sorted({key for u in utterances for key in u.labels}))}"
        raise ManifestError(
            f"The corpus {root} has no utterance in '{split}' with {_list(config.fields)}"
            f"{'' if config.languages is None else ' in ' + _list(config.languages)}: {known}; prepare a corpus that "
            f"has them, or set `{'languages' if labelled else 'fields'}`."
        )
    if without:
        message = "%s is the first of %d utterances of %d in '%s' without %s, which take no part"
        where = where_is(root, split, without[0])
        logger.warning(message, where, len(without), len(utterances), split, " or ".join(map(repr, config.fields)))
    return kept


def make_classes(utterances: Iterable[Utterance], fields: Sequence[str]) -> Classes:
    """All classes that occur, sorted."""
    found: dict[str, set[str]] = {name: set() for name in fields}
    for utterance in utterances:
        for name in fields:
            found[name].add(label_of(utterance, name))
    return Classes({name: tuple(sorted(classes)) for name, classes in found.items()})


def _with_known_classes(
    root: Path, splits: Mapping[str, Sequence[Utterance]], config: ClassificationConfig, names: Mapping[str, str]
) -> dict[str, list[Utterance]]:
    """Dev and test, whose classes all occur in training."""
    trained = make_classes(splits["train"], config.fields).of_field
    for name, classes in trained.items():
        if len(classes) < 2:
            raise ManifestError(
                f"The corpus {root} has one class of '{name}' in '{names.get('train', 'train')}', {_list(classes)}: a "
                "classification needs two or more."
            )
    known: dict[str, list[Utterance]] = {}
    for split in SPLITS[1:]:
        known[split] = [u for u in splits[split] if all(label_of(u, n) in trained[n] for n in config.fields)]
        unknown = [u for u in splits[split] if not all(label_of(u, n) in trained[n] for n in config.fields)]
        if not unknown:
            continue
        new = sorted({label_of(u, n) for u in unknown for n in config.fields if label_of(u, n) not in trained[n]})
        called = names.get(split, split)
        what = (
            f"{where_is(root, called, unknown[0].id)} is the first of {len(unknown)} utterances in '{called}' of "
            f"classes without a training example: {_list(new[:NAMED])}"
            f"{f' and {len(new) - NAMED} more' if len(new) > NAMED else ''}"
        )
        if not config.leave_out_unknown:
            raise ManifestError(f"{what}. Add some to 'train', or set `leave_out_unknown=true`.")
        if not known[split]:
            raise ManifestError(f"{what}. None of '{called}' is left without them: add some to 'train'.")
        logger.warning("%s; they are left out", what)
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
