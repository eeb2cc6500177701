"""Which utterances train the head, which are converted, and whose voices they are converted to.

Everything is a function of the corpus and the config: orders come from hashes of utterance ids, so that every upstream
and seed converts the same pairs. A corpus that comes with lists of conversions is converted by these (`listed`).
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from downstreams.voice_conversion.config import EXTERNAL, VoiceConversionConfig
from downstreams.voice_conversion.listed import Lines, listed_plan, read_lists
from downstreams.voice_conversion.plan import SPLITS, Pair, Plan, Target, duration_of, find_parallels, shuffled, take
from speechssl.data.corpus import Corpus, where_is
from speechssl.errors import SpeechsslError
from speechssl.task import TaskData
from speechssl.types import Utterance

logger = logging.getLogger(__name__)
__all__ = ["SHORTEST", "SPLITS", "Pair", "Plan", "Target", "make_data"]
SHORTEST = 0.8
"""Seconds; shorter clips hold too little speech for the head, the references and the judge of voices."""


def make_data(corpus: Corpus, config: VoiceConversionConfig) -> TaskData:
    """Plans the training and the conversions.

    Returns:
        TaskData with the sources, references and held-out speech in 'dev' and 'test', and `extra['plan']`.

    Raises:
        SpeechsslError: the corpus has no sources or no targets of this kind.
    """
    splits = {name: _long_enough(corpus, name) for name in ("train", *SPLITS)}
    lists = _of_one_target(read_lists(corpus), config)
    plan = _choose_plan(corpus, splits, config) if lists is None else listed_plan(corpus, splits, lists, config)
    plan = replace(plan, parallels=find_parallels(plan, [u for found in splits.values() for u in found]))
    limit = None if config.train_minutes is None else 60.0 * config.train_minutes
    by_split = {"train": take(shuffled(_heard(splits["train"], plan, config)), limit)}
    by_split.update({name: _needed(plan, name) for name in SPLITS})
    return TaskData(by_split, {"plan": plan, "corpus_root": corpus.root, "corpus_fingerprint": corpus.fingerprint})


def _choose_plan(corpus: Corpus, splits: Mapping[str, Sequence[Utterance]], config: VoiceConversionConfig) -> Plan:
    """Sources of the language, and the other speakers with the most speech."""
    sources = {name: _sources(splits[name], name, config, corpus.root) for name in SPLITS}
    if config.judges != "none":
        sources = {
            name: _with_known_voices(found, splits["train"], config, corpus.root) for name, found in sources.items()
        }
    speakers = sorted({str(u.labels["speaker"]) for found in sources.values() for u in found})
    targets = _targets(_speech_of_targets(corpus, splits, config), splits, set(speakers), config, corpus.root)
    known = {s: _spoken_by(s, splits["train"], config) for s in speakers}
    counts = {"dev": config.dev_pairs, "test": config.test_pairs}
    return Plan(targets, known, {name: _pairs(sources[name], targets, counts[name]) for name in SPLITS})


def _of_one_target(lists: dict[str, Lines] | None, config: VoiceConversionConfig) -> dict[str, Lines] | None:
    """The listed conversions to the one target, where there is to be one."""
    if lists is None or not (config.any_to_one or config.target):
        return lists
    known = dict.fromkeys(line[2] for line in lists["test"])
    name = config.target or next(iter(known))
    if name not in known:
        raise SpeechsslError(f"Nothing is converted to the `target` '{name}': name one of {', '.join(known)}.")
    return {split: [line for line in lines if line[2] == name] for split, lines in lists.items()}


def _heard(train: Sequence[Utterance], plan: Plan, config: VoiceConversionConfig) -> Sequence[Utterance]:
    """What the head learns from: everybody; or the one target, and with discriminators everybody else beside.

    What the judge knows the one target's voice by is left out.
    """
    if not config.any_to_one:
        return train
    (target,) = plan.targets.values()
    known = {u.id for u in target.profile}
    own = [u for u in train if u.labels.get("speaker") == target.speaker and u.id not in known]
    if not own:
        raise SpeechsslError(
            f"'train' has no speech of '{target.speaker}' beside the judge's: name another `target`, or lower "
            "`profile_utterances`."
        )
    if not config.synthesis.adversarial.enabled:
        return own
    others = [u for u in train if u.labels.get("speaker") != target.speaker]
    return own + [replace(u, labels={**u.labels, EXTERNAL: True}) for u in others]


def _long_enough(corpus: Corpus, split: str) -> list[Utterance]:
    everything = corpus.utterances(split)
    kept = [u for u in everything if duration_of(u) >= SHORTEST]
    if len(kept) < len(everything):
        message = "voice conversion %s: %d of %d utterances are below %g s and take no part"
        logger.info(message, split, len(everything) - len(kept), len(everything), SHORTEST)
    return kept


def _sources(utterances: Sequence[Utterance], split: str, config: VoiceConversionConfig, root: Path) -> list[Utterance]:
    shortest, longest = config.source_seconds
    found = [
        u
        for u in utterances
        if u.labels.get("language") == config.language and _is_told(u) and shortest <= duration_of(u) <= longest
    ]
    if not found:
        raise SpeechsslError(
            f"Voice conversion needs sources of {shortest}-{longest} s in '{config.language}' with text and speaker, "
            f"but the corpus {root} has none in '{split}' (manifests/{split}.jsonl.gz): set `language` or "
            "`source_seconds`."
        )
    untold = [u for u in utterances if u.labels.get("language") == config.language and not _is_told(u)]
    if untold:
        message = "%s is the first of %d utterances of '%s' in '%s' without text or speaker, which are no sources"
        logger.info(message, where_is(root, split, untold[0].id), len(untold), config.language, split)
    return shuffled(found)


def _is_told(utterance: Utterance) -> bool:
    return bool(str(utterance.labels.get("text") or "").strip() and utterance.labels.get("speaker"))


def _with_known_voices(
    sources: Sequence[Utterance], train: Sequence[Utterance], config: VoiceConversionConfig, root: Path
) -> list[Utterance]:
    """The sources whose speakers have other speech, by which the judge of voices knows them."""
    heard = {u.labels.get("speaker") for u in train if u.labels.get("language") == config.language}
    kept = [u for u in sources if u.labels["speaker"] in heard]
    strangers = sorted({str(u.labels["speaker"]) for u in sources} - {str(name) for name in heard})
    if not kept:
        raise SpeechsslError(
            f"No speaker of the sources, such as '{strangers[0]}', has an utterance in 'train' of {root} by which the "
            "judge of voices could know him: prepare a corpus with several utterances of each, or set `judges=none`."
        )
    if strangers:
        message = "voice conversion: %d sources are left out, since 'train' has nothing of their speakers, such as '%s'"
        logger.warning(message, len(sources) - len(kept), strangers[0])
    return kept


def _spoken_by(speaker: str, utterances: Iterable[Utterance], config: VoiceConversionConfig) -> tuple[Utterance, ...]:
    """Train-split speech of a source speaker in the language of the sources."""
    labels = (speaker, config.language)
    found = [u for u in utterances if (u.labels.get("speaker"), u.labels.get("language")) == labels]
    return tuple(shuffled(found)[: config.profile_utterances])


def _speech_of_targets(
    corpus: Corpus, splits: Mapping[str, Sequence[Utterance]], config: VoiceConversionConfig
) -> list[Utterance]:
    """What may be a target's reference: of other splits than 'train' only what people say who are not in 'train'."""
    heard = {u.labels.get("speaker") for u in splits["train"]}
    found: dict[str, Utterance] = {}
    for name in config.target_splits:
        spoken = splits["train"] if name == "train" else _long_enough(corpus, name)
        found.update({u.id: u for u in spoken if name == "train" or u.labels.get("speaker") not in heard})
    return list(found.values())


def _targets(
    pool: Sequence[Utterance],
    splits: Mapping[str, Sequence[Utterance]],
    source_speakers: set[str],
    config: VoiceConversionConfig,
    root: Path,
) -> dict[str, Target]:
    """The speakers with the most speech in the pool, in that order; nobody is converted to a source's own voice."""
    by_speaker: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in pool:
        speaker = utterance.labels.get("speaker")
        if speaker and speaker not in source_speakers:
            by_speaker[str(speaker)].append(utterance)
    where = " and ".join(f"'{name}'" for name in config.target_splits)
    if config.target is not None:
        if config.target not in by_speaker:
            raise SpeechsslError(
                f"'{config.target}' can't be the `target`: {where} of {root} has no speech of that name, or it is a "
                f"source's. Name another, such as '{min(by_speaker, default='')}'."
            )
        by_speaker = {config.target: by_speaker[config.target]}
    ranked = sorted(by_speaker, key=lambda s: (-round(sum(map(duration_of, by_speaker[s]))), s))
    targets: dict[str, Target] = {}
    for speaker in ranked[: config.targets]:
        spoken = shuffled(by_speaker[speaker])
        profile, rest = spoken[: config.profile_utterances], spoken[config.profile_utterances :]
        held_out = shuffled(u for name in SPLITS for u in splits[name] if u.labels.get("speaker") == speaker)
        if not held_out:  # speakers of other splits: of what they say there
            held_out, rest = rest[:2], rest[2:]
        reference = take(rest, config.reference_seconds)
        if sum(map(duration_of, reference)) >= 0.9 * config.reference_seconds and held_out:
            targets[speaker] = Target(speaker, tuple(reference), tuple(profile), tuple(held_out[:2]))
    if not targets:
        raise SpeechsslError(
            f"No speaker but the sources' has {config.reference_seconds:.0f} s of speech in {where} of {root} beside "
            f"{config.profile_utterances} profile utterances and two for the bounds: lower `reference_seconds`."
        )
    lacking = [speaker for speaker in ranked[: config.targets] if speaker not in targets]
    if lacking:
        message = "voice conversion: %d speakers have too little speech to be targets, which leaves %d: %s"
        logger.warning(message, len(lacking), len(targets), ", ".join(lacking))
    elif len(targets) < config.targets:
        logger.warning("voice conversion: %d speakers can be targets, of %d wanted", len(targets), config.targets)
    return targets


def _pairs(sources: Sequence[Utterance], targets: Mapping[str, Target], count: int) -> tuple[Pair, ...]:
    """`count` conversions: each source once before any twice, the targets in turn."""
    names = list(targets)
    # The offset grows by one with each round through the sources, or a source would meet the same target again.
    every = (
        Pair(source, names[(i + turn) % len(names)]) for turn in range(len(names)) for i, source in enumerate(sources)
    )
    return tuple(islice(every, count))


def _needed(plan: Plan, split: str) -> list[Utterance]:
    """Every utterance whose features an evaluation reads, once each."""
    used = {p.target for p in plan.pairs[split]}
    found = {p.source.id: p.source for p in plan.pairs[split]}
    for name in used:
        target = plan.targets[name]
        found.update({u.id: u for u in (*target.reference, target.held_out[0])})
    return list(found.values())
