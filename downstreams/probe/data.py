"""Which utterances a probe trains on and is tested on, whatever the corpus calls its splits and labels."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from speechssl.classification.data import SPLITS, find_labelled, label_of
from speechssl.data.corpus import Corpus, describe_utterance
from speechssl.data.seeds import derive_seed
from speechssl.data.spans import read_spans
from speechssl.errors import ManifestError
from speechssl.types import Utterance

from .config import FOLDS, ProbeConfig
from .folds import assign_folds, quantile_strata

logger = logging.getLogger(__name__)
Splits = dict[str, list[Utterance]]


def read_everything(corpus: Corpus, config: ProbeConfig) -> Splits:
    """All utterances of 'train', 'dev' and 'test', labelled or not: the corpus's, or those of a fold.

    Raises:
        ManifestError: a split that the corpus lacks, or no group where the config names one.
    """
    if config.fold:
        return _fold(corpus, config)
    names = {split: config.splits.get(split, split) for split in SPLITS}
    absent = [name for name in names.values() if name not in corpus.splits()]
    if absent:
        raise ManifestError(
            f"The corpus {corpus.root} has no split '{absent[0]}', it has {_list(corpus.splits())}: name it with "
            "`splits`, as in `splits.dev=valid`, or cross-validate with `--folds all`."
        )
    return {split: corpus.utterances(name) for split, name in names.items()}


def _fold(corpus: Corpus, config: ProbeConfig) -> Splits:
    """Fifths of all labelled utterances: one is test, the next dev, three are train."""
    wanted = dict.fromkeys(config.splits.get(split, split) for split in SPLITS)
    pool: dict[str, Utterance] = {}
    for name in wanted:
        if name not in corpus.splits():
            continue
        for utterance in corpus.utterances(name):
            if pool.setdefault(utterance.id, utterance) != utterance:
                raise ManifestError(
                    f"The corpus {corpus.root} has two utterances '{utterance.id}', one of them in '{name}': ids must "
                    "be unique over all splits to be divided into folds."
                )
    labelled = [u for u in pool.values() if all(label_of(u, name) for name in config.fields)]
    if not labelled:
        raise ManifestError(
            f"The corpus {corpus.root} has no utterance with {_list(config.fields)} in {_list(wanted)}: its splits are "
            f"{_list(corpus.splits())}."
        )
    logger.info("probe: %d utterances in folds, %d without a label", len(labelled), len(pool) - len(labelled))
    folds = assign_folds(_groups(labelled, config, corpus.root), _strata(labelled, config, corpus.root), FOLDS)
    chosen: Splits = {split: [] for split in SPLITS}
    for utterance, fold in zip(labelled, folds, strict=True):
        split = "test" if fold == config.fold else "dev" if fold == config.fold % FOLDS + 1 else "train"
        chosen[split].append(utterance)
    return chosen


def _groups(utterances: Sequence[Utterance], config: ProbeConfig, root: Path) -> list[str]:
    """The group of each utterance; itself, where the config names none."""
    if config.group is None:
        return [u.id for u in utterances]
    groups = [label_of(u, config.group) for u in utterances]
    without = [u.id for u, group in zip(utterances, groups, strict=True) if not group]
    if without:
        raise ManifestError(
            f"{describe_utterance(root, without[0])} is the first of {len(without)} of {len(groups)} that have no "
            f"'{config.group}': label them, or set `group=null`."
        )
    return groups


def _strata(utterances: Sequence[Utterance], config: ProbeConfig, root: Path) -> list[str]:
    """What is to be alike in all folds: classes, fifths of the numbers; nothing of spans."""
    if config.level != "utterance":
        return ["" for _ in utterances]
    if config.kind == "regression":
        return quantile_strata([number_of(u, config.fields[0], root) for u in utterances], FOLDS)
    return [" ".join(label_of(u, name) for name in config.fields) for u in utterances]


def check_groups(splits: Mapping[str, Sequence[Utterance]], config: ProbeConfig, root: Path) -> None:
    """Looks whether splits share a group.

    Raises:
        ManifestError: they do and `overlap` is 'refuse', or an utterance has none.
    """
    if config.group is None:
        return
    held = {split: set(_groups(utterances, config, root)) for split, utterances in splits.items()}
    for first, second in (("train", "dev"), ("train", "test"), ("dev", "test")):
        shared = sorted(held[first] & held[second])
        if not shared:
            continue
        what = f"'{first}' and '{second}' of {root} share {len(shared)} values of '{config.group}', such as {shared[0]}"
        if config.overlap == "refuse":
            raise ManifestError(
                f"{what}: divide the corpus anew with `--folds all`, or set `overlap=warn` if that is meant."
            )
        logger.warning("%s", what)


def number_of(utterance: Utterance, name: str, root: Path) -> float:
    """A label as a number.

    Raises:
        ManifestError: it is none, or not finite.
    """
    return finite_number(label_of(utterance, name), utterance, name, root)


def finite_number(text: str, utterance: Utterance, name: str, root: Path) -> float:
    """A label `name` of an utterance, or of a part of it, as a number; raises as `number_of`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ManifestError(
            f"{describe_utterance(root, utterance.id)} has '{text}' as '{name}', but a regression needs a finite "
            "number: mend it, or leave the label empty."
        )
    return value


def choose_numbered(everything: Mapping[str, Sequence[Utterance]], config: ProbeConfig, root: Path) -> Splits:
    """The utterances with a number, as many as the config asks for.

    Raises:
        ManifestError: a split without one, a label that is no number, or the same number throughout training.
    """
    name = config.fields[0]
    splits: Splits = {}
    for split, utterances in everything.items():
        kept = find_labelled(utterances, config, root, split if config.fold else config.splits.get(split, split))
        limit = config.max_train_utterances if split == "train" else config.max_eval_utterances
        chosen = set(sorted((u.id for u in kept), key=lambda i: derive_seed("number subset", i))[:limit])
        splits[split] = [u for u in kept if u.id in chosen]
        values = {number_of(u, name, root) for u in splits[split]}
        if split == "train" and len(values) < 2:
            raise ManifestError(
                f"The corpus {root} has one value of '{name}' in 'train': {values.pop()}; a regression needs two."
            )
        logger.info("regression %s: %d utterances of %d", split, len(splits[split]), len(utterances))
    return splits


def cut_into_segments(utterance: Utterance, name: str, root: Path) -> list[Utterance]:
    """One utterance per entry of the list that is its label `name`; none where the label is absent.

    Raises:
        ManifestError: the label is no such list, or a segment is not within the utterance.
    """
    return [
        replace(
            utterance,
            id=f"{utterance.id}#{number}",
            start=utterance.start + span.begin,
            duration=span.end - span.begin,
            labels={**utterance.labels, name: span.value},
        )
        for number, span in enumerate(read_spans(utterance, name, root))
    ]


def _list(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)
