"""Which utterances are made: the same real ones for the real class and for every attack, languages evenly mixed."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest

import torch

from downstreams.deepfake_detection.attacks import Attack
from downstreams.deepfake_detection.conditioning import SAMPLE_RATE, bare_sound, read_whole, trim_silence
from downstreams.deepfake_detection.config import ConditioningConfig, SplitSize, SpoofConfig
from speechssl.data.corpus import Corpus, where_is
from speechssl.errors import SpeechsslError
from speechssl.types import Utterance

logger = logging.getLogger(__name__)
SPARE = 0.1  # seconds
SPLITS = ("train", "dev", "test")
BONA_FIDE = "bonafide"
"""What stands in place of an attack's name for real speech, as in ASVspoof's protocols."""


@dataclass(frozen=True)
class Item:
    """One utterance of the set, real or spoofed."""

    split: str
    attack: str
    """The attack's name, or `BONA_FIDE`."""
    original: Utterance
    """The real utterance it is, or imitates."""
    variant: int = 0

    @property
    def id(self) -> str:
        """Unique over the set."""
        suffix = "" if self.attack == BONA_FIDE else f"_{self.variant}"
        return f"{self.split}_{self.attack}{suffix}_{self.original.id}".replace("/", "-")

    def generator(self, seed: int, purpose: str) -> torch.Generator:
        """Random numbers that depend on what they are for and on nothing else."""
        digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def make_plan(corpus: Corpus, config: SpoofConfig, attacks: Sequence[Attack]) -> list[Item]:
    """Chooses the real utterances of each split and hands each attack its share of them.

    Args:
        attacks: those that can be had, among the seen and unseen ones of `config`.
    """
    items: list[Item] = []
    for split, size in zip(SPLITS, (config.train, config.dev, config.test), strict=True):
        everything = corpus.utterances(split)
        real = choose_real(everything, size.real, config.conditioning, seed=config.seed)
        untold = [u.id for u in everything if not _is_told(u)]
        if untold:
            message = "%s is the first of %d utterances in '%s' without a transcript, which take no part"
            logger.info(message, where_is(corpus.root, split, untold[0]), len(untold), split)
        if not real:
            raise SpeechsslError(
                f"The corpus {corpus.root} has no transcribed utterance of {config.conditioning.seconds} s or "
                f"more in '{split}': prepare a larger one, or lower spoof.conditioning.seconds."
            )
        if len(real) < size.real:
            logger.info("Only %d of %d wanted real utterances are long enough in %s", len(real), size.real, split)
        items.extend(Item(split, BONA_FIDE, utterance) for utterance in real)
        for attack in attacks:
            if split == "test" or attack.name in config.seen:
                if not any(attack.covers(str(u.labels.get("language", ""))) for u in real):
                    logger.warning("The attack '%s' speaks no language of '%s' of %s", attack.name, split, corpus.root)
                items.extend(_items(attack, split, real, size, seen=attack.name in config.seen))
    return items


def variants(attack: Attack, split: str, *, seen: bool) -> list[int]:
    """The voices or settings of a split: train has the first half of a seen attack's, dev and test the other."""
    every = list(range(attack.variants))
    if not seen or len(every) == 1:
        return every
    half = (len(every) + 1) // 2
    return every[:half] if split == "train" else every[half:]


def _items(attack: Attack, split: str, real: Sequence[Utterance], size: SplitSize, *, seen: bool) -> list[Item]:
    """`per_attack` items: every utterance once, with voices in turn, before any comes again with another voice."""
    sources = [u for u in real if attack.covers(str(u.labels.get("language", "")))]
    voices = variants(attack, split, seen=seen)
    rounds = (
        Item(split, attack.name, utterance, voices[(number + turn) % len(voices)])
        for turn in range(len(voices) if attack.kind == "tts" else 1)
        for number, utterance in enumerate(sources)
    )
    return list(islice(rounds, size.per_attack))


def choose_real(
    utterances: Iterable[Utterance], count: int, config: ConditioningConfig, *, seed: int
) -> list[Utterance]:
    """Takes up to `count` transcribed utterances with enough speech, one language after the other in turn."""
    by_language: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in sorted(utterances, key=lambda u: hashlib.sha256(f"{seed} {u.id}".encode()).digest()):
        if _is_told(utterance) and (utterance.duration or 0.0) >= config.seconds:
            by_language[str(utterance.labels.get("language", ""))].append(utterance)
    columns = [by_language[language] for language in sorted(by_language)]
    in_turn = (u for u in chain.from_iterable(zip_longest(*columns)) if u is not None)
    return list(islice((u for u in in_turn if _has_speech(u, config)), count))


def _is_told(utterance: Utterance) -> bool:
    return bool(str(utterance.labels.get("text") or "").strip())


def _has_speech(utterance: Utterance, config: ConditioningConfig) -> bool:
    _, sound = bare_sound(*read_whole(utterance), config)
    trimmed = trim_silence(sound, config.trim_db)
    # A vocoder blurs the ends a little, and what it gives back must still be long enough.
    return trimmed.numel() >= (config.seconds + SPARE) * SAMPLE_RATE and float(sound.abs().max()) > 1e-3
