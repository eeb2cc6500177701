"""Utterances by speaker, and the trials between them.

A trial is a pair of different utterances. Its kind is 'within language' where both are in one language and that
language has at least two speakers in the split, so that targets and non-targets differ in the speaker alone; all others
are 'across languages'. The first kind is the headline: where speakers and languages go together, a system could tell
speakers apart by their language. Where a corpus has an official list of trials, test is measured with that instead.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

import torch

from speechssl.data.batching import derive_seed, make_generator
from speechssl.data.corpus import Corpus, where_is
from speechssl.errors import ManifestError
from speechssl.text_files import read_lines
from speechssl.types import Utterance

from .config import SpeakerVerificationConfig
from .perturb import with_speeds

logger = logging.getLogger(__name__)
WITHIN, ACROSS, LISTED = "within language", "across languages", "official list"
OFFICIAL = ("veri_test2", "voxceleb1_test_v2")
"""VoxCeleb1's cleaned list, which is SUPERB's, under the names that its publisher and S3PRL give it."""
PAIRS = "pairs"
NAMED = 5  # speakers that a message names


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
    listed = find_list(corpus, config)
    for split in ("train", "dev", "test"):
        everything = corpus.utterances(f"speaker_{split}")
        kept = [u for u in everything if config.languages is None or u.labels.get("language") in config.languages]
        unknown = [u for u in kept if not u.labels.get("speaker")]
        limit = config.max_train_utterances if split == "train" else config.max_eval_utterances
        if split == "test" and listed is not None:
            limit = None
        chosen = subset([u for u in kept if u.labels.get("speaker")], limit)
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
                "settings: speaker verification needs at least two, so prepare a larger one, or widen `languages`."
            )
        if split == "dev" or (split == "test" and listed is None):
            check_pairs(chosen, f"'speaker_{split}' of {corpus.root}")
        if split == "train":
            # A corpus that was prepared anew has another fingerprint, and its copies another folder.
            chosen = with_speeds(chosen, config.speeds, corpus.root / "speaker_verification" / corpus.fingerprint[:16])
        splits[split] = chosen
    for first, second in combinations(splits, 2):
        shared = set(speakers_of(splits[first])) & set(speakers_of(splits[second]))
        if shared:
            name = min(shared)
            told = next(u.id for u in splits[second] if str(u.labels["speaker"]) == name)
            raise ManifestError(
                f"{where_is(corpus.root, f'speaker_{second}', told)} has an utterance of '{name}', who is in "
                f"'speaker_{first}' too: split again, so that each speaker is in one of them."
            )
    return splits


def find_list(corpus: Corpus, config: SpeakerVerificationConfig) -> str | None:
    """The name of the list of trials that test is measured with; None = pairs are made.

    Raises:
        ManifestError: the corpus lacks the list that was asked for.
    """
    names = list(corpus.info.get("files", {}))
    if config.trials is None:
        return next((name for name in OFFICIAL if name in names), None)
    if config.trials == PAIRS:
        return None
    if config.trials not in names:
        raise ManifestError(
            f"The corpus {corpus.root} has no list of trials '{config.trials}', but has {', '.join(names) or 'none'}: "
            "choose one of them, or `trials=pairs`."
        )
    return config.trials


def read_trials(corpus: Corpus, name: str, utterances: Sequence[Utterance]) -> list[Trial]:
    """The trials of a list, '<1 = one speaker, 0> <id> <id>' line by line, of utterances of test.

    Lines that name utterances that are left out are counted in the log.

    Raises:
        ManifestError: a line of another form, or that names an utterance which is not among them.
    """
    known = {u.id: u for u in utterances}
    trials: list[Trial] = []
    lost = 0
    for where, line in read_lines(corpus.root / corpus.info["files"][name]):
        values = line.split()
        if len(values) != 3 or values[0] not in ("0", "1"):
            raise ManifestError(f"{where} is '{line.strip()}', but must be 1 or 0 and two utterances.")
        if not corpus.left_out.isdisjoint(values[1:]):
            lost += 1
            continue
        for value in values[1:]:
            if value not in known:
                raise ManifestError(
                    f"{where} names '{value}', which is not in 'speaker_test' for these settings: trials must be "
                    "between speakers that are not heard in training; choose another list, or `trials=pairs`."
                )
        trials.append(Trial(known[values[1]], known[values[2]], values[0] == "1", LISTED))
    if lost:
        logger.warning("%d trials of '%s' name utterances that are left out", lost, name)
    if len({t.target for t in trials}) < 2:
        raise ManifestError(f"The list '{name}' of {corpus.root} must have trials of both kinds, but has not.")
    return trials


def speakers_of(utterances: Sequence[Utterance]) -> tuple[str, ...]:
    """The distinct speakers, sorted."""
    return tuple(sorted({str(u.labels["speaker"]) for u in utterances}))


def check_pairs(utterances: Sequence[Utterance], where: str) -> None:
    """Says who has a single utterance, and so is in no target trial.

    Args:
        where: the utterances are, for messages.

    Raises:
        ManifestError: pairs of them are no trials of both kinds.
    """
    counts = Counter(str(u.labels["speaker"]) for u in utterances)
    alone = sorted(speaker for speaker, count in counts.items() if count == 1)
    if alone:
        names = ", ".join(f"'{name}'" for name in alone[:NAMED]) + ", ..." * (len(alone) > NAMED)
        message = "%d of %d speakers in %s have one utterance, and so no target trial: %s"
        logger.warning(message, len(alone), len(counts), where, names)
    groups = Counter((str(u.labels.get("language")), str(u.labels["speaker"])) for u in utterances)
    spoken = Counter(language for language, _ in groups)
    found: set[tuple[str, bool]] = set()
    for first, second in combinations_with_replacement(sorted(groups), 2):
        if first == second and groups[first] < 2:
            continue
        within = first[0] == second[0] and spoken[first[0]] > 1
        found.add((WITHIN if within else ACROSS, first[1] == second[1]))
        if any({(kind, True), (kind, False)} <= found for kind in (WITHIN, ACROSS)):
            return
    raise ManifestError(
        f"There are no trials of both kinds, of one and of two speakers, in {where}: it needs two speakers of a "
        "language with two utterances each."
    )


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
        drawn = _draw(pool, max_trials, f"{kind} {target}")
        if len(drawn) < len(pool):
            message = "speaker verification: %d of %d %s trials %s are drawn (`max_trials`)"
            logger.info(message, len(drawn), len(pool), "target" if target else "non-target", kind)
        trials.extend(drawn)
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


def subset(utterances: Sequence[Utterance], limit: int | None) -> list[Utterance]:
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
