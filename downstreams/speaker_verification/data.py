"""Utterances by speaker, and the trials between them.

A trial is a pair of different utterances. Its kind is 'within language' where both are in one language and that
language has at least two speakers in the split, so that targets and non-targets differ in the speaker alone; all others
are 'across languages'. The first kind is the headline: where speakers and languages go together, a system could tell
speakers apart by their language.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from speechssl.data.batching import derive_seed, make_generator
from speechssl.data.corpus import Corpus
from speechssl.errors import ManifestError
from speechssl.types import Utterance

from .config import SpeakerVerificationConfig
from .perturb import with_speeds

logger = logging.getLogger(__name__)
WITHIN, ACROSS = "within language", "across languages"


@dataclass(frozen=True)
class Trial:
    """A pair of utterances; `target` = the same speaker."""

    first: Utterance
    second: Utterance
    target: bool
    kind: str


def read_splits(corpus: Corpus, config: SpeakerVerificationConfig) -> Mapping[str, list[Utterance]]:
    """The utterances of 'train', 'dev' and 'test', which share no speaker.

    Raises:
        ManifestError: too few speakers, or one that is in two splits.
    """
    splits: dict[str, list[Utterance]] = {}
    for split in ("train", "dev", "test"):
        everything = corpus.utterances(f"speaker_{split}")
        kept = [u for u in everything if config.languages is None or u.labels.get("language") in config.languages]
        unknown = [u for u in kept if not u.labels.get("speaker")]
        limit = config.max_train_utterances if split == "train" else config.max_eval_utterances
        chosen = _subset([u for u in kept if u.labels.get("speaker")], limit)
        logger.info(
            "speaker verification %s: %d utterances of %d (%d without a speaker), %d speakers",
            split,
            len(chosen),
            len(everything),
            len(unknown),
            len(speakers_of(chosen)),
        )
        if len(speakers_of(chosen)) < 2:
            raise ManifestError(
                f"The corpus {corpus.root} has {len(speakers_of(chosen))} speakers in 'speaker_{split}' for these "
                "settings: speaker verification needs at least two."
            )
        if split == "train":
            # A corpus that was prepared anew has another fingerprint, and its copies another folder.
            chosen = with_speeds(chosen, config.speeds, corpus.root / "speaker_verification" / corpus.fingerprint[:16])
        splits[split] = chosen
    for first, second in combinations(splits, 2):
        shared = set(speakers_of(splits[first])) & set(speakers_of(splits[second]))
        if shared:
            raise ManifestError(f"Speaker '{min(shared)}' is in 'speaker_{first}' and 'speaker_{second}': split again.")
    return splits


def speakers_of(utterances: Sequence[Utterance]) -> tuple[str, ...]:
    """The distinct speakers, sorted."""
    return tuple(sorted({str(u.labels["speaker"]) for u in utterances}))


def make_trials(utterances: Sequence[Utterance], *, max_trials: int) -> list[Trial]:
    """All pairs, or an even draw of `max_trials` where a kind has more of a label; the same on every machine.

    Raises:
        ManifestError: no kind has both targets and non-targets.
    """
    speakers = defaultdict(set)
    for utterance in utterances:
        speakers[utterance.labels.get("language")].add(utterance.labels["speaker"])
    pools: dict[tuple[str, bool], list[Trial]] = {(k, t): [] for k in (WITHIN, ACROSS) for t in (True, False)}
    for first, second in combinations(sorted(utterances, key=lambda u: u.id), 2):
        language = first.labels.get("language")
        same_language = language == second.labels.get("language")
        kind = WITHIN if same_language and len(speakers[language]) > 1 else ACROSS
        target = first.labels["speaker"] == second.labels["speaker"]
        pools[kind, target].append(Trial(first, second, target, kind))
    trials: list[Trial] = []
    for (kind, target), pool in pools.items():
        trials.extend(_draw(pool, max_trials, f"{kind} {target}"))
    if not any(len({t.target for t in trials if t.kind == kind}) == 2 for kind in (WITHIN, ACROSS)):
        raise ManifestError(
            "There are no trials of both kinds: each split needs two speakers with two utterances each."
        )
    return trials


def _draw(pool: list[Trial], limit: int, name: str) -> list[Trial]:
    if len(pool) <= limit:
        return pool
    chosen = torch.randperm(len(pool), generator=make_generator("trials", name))[:limit]
    return [pool[i] for i in sorted(chosen.tolist())]


def _subset(utterances: Sequence[Utterance], limit: int | None) -> list[Utterance]:
    """At most `limit` utterances per speaker and language, in the order of the corpus."""
    if limit is None:
        return list(utterances)
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for utterance in utterances:
        groups[str(utterance.labels["speaker"]), str(utterance.labels.get("language"))].append(utterance.id)
    chosen: set[str] = set()
    for ids in groups.values():
        chosen.update(sorted(ids, key=lambda name: derive_seed("speaker subset", name))[:limit])
    return [u for u in utterances if u.id in chosen]
