"""Makes the set, once, below the corpus: real and spoofed utterances as FLAC, with manifests like any corpus.

    <corpus>/deepfake/<fingerprint>/corpus.json, manifests/, audio/<split>/<id>.flac

Labels: `attack` (or 'bonafide'), `family`, `seen`, `original`, `language`, `speaker`, `text`. What was finished is
kept: an interrupted making goes on from there.
"""

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torchaudio.functional as AF

from downstreams.deepfake_detection.attacks import Attack, Source, Synthesiser, find_attack
from downstreams.deepfake_detection.conditioning import SAMPLE_RATE, finish, read_whole, take_segment
from downstreams.deepfake_detection.config import SpoofConfig
from downstreams.deepfake_detection.plan import BONA_FIDE, SPLITS, Item, make_plan
from speechssl.data.corpus import Corpus, open_corpus
from speechssl.data.flac import write_flac
from speechssl.data.manifests import Clip, write_corpus
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.progress import progress

logger = logging.getLogger(__name__)
REVISION = 5
"""Raised when the same config would give other audio."""
CHUNK = 12  # items that a process gets at a time
MAX_TEXT = 80  # characters that a synthesiser is given: a few seconds of speech


def prepare_set(corpus: Corpus, config: SpoofConfig) -> Corpus:
    """Opens the set that `config` describes, made from `corpus` first where it isn't there yet.

    Raises:
        ConfigError: an attack is both seen and unseen, or none of either kind can be had.
    """
    folder = corpus.root / "deepfake" / fingerprint(corpus, config)
    if (folder / "corpus.json").is_file():
        return open_corpus(folder)
    attacks, left_out = open_attacks(config)
    items = make_plan(corpus, config, attacks)
    dropped = _make(items, folder, config)
    splits = _clips(items, folder, config)
    _check_classes(splits, corpus.root)
    extra = {"config": asdict(config), "left_out": left_out, "made_from": corpus.fingerprint}
    sources = [_attack_info(a, splits, dropped) for a in attacks]
    write_corpus(folder, splits, name="deepfake", source=corpus.source, sources=sources, extra=extra)
    return open_corpus(folder)


def fingerprint(corpus: Corpus, config: SpoofConfig) -> str:
    """Names the set: equal corpus and equal settings, equal name. The number of processes makes no difference."""
    settings = {k: v for k, v in asdict(config).items() if k != "processes"}
    text = json.dumps([REVISION, corpus.fingerprint, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def open_attacks(config: SpoofConfig) -> tuple[list[Attack], dict[str, str]]:
    """The attacks that can be had, in the order of the config, and why the others can't."""
    both = set(config.seen) & set(config.unseen)
    if both:
        raise ConfigError(f"The attack '{min(both)}' is both in spoof.seen and in spoof.unseen: take it out of one.")
    found, left_out = [], {}
    for name in (*config.seen, *config.unseen):
        attack = find_attack(name)
        try:
            attack.load()
        except SpeechsslError as error:
            logger.warning("The attack '%s' is left out: %s", name, error)
            left_out[name] = str(error)
        else:
            found.append(attack)
    for kind, names in (("seen", config.seen), ("unseen", config.unseen)):
        if not any(a.name in names for a in found):
            raise ConfigError(f"None of the attacks in spoof.{kind} can be had: {left_out or 'the list is empty'}.")
    return found, left_out


def _make(items: Sequence[Item], folder: Path, config: SpoofConfig) -> Mapping[str, int]:
    """Writes what isn't there yet; returns how many items of each attack could not be made."""
    from joblib import Parallel, delayed, parallel_config

    chunks = list(_chunks([item for item in items if not _path(folder, item).exists()]))
    dropped: dict[str, int] = defaultdict(int)
    total = sum(len(chunk) for chunk in chunks)
    with (
        progress("Making spoofed speech", total, unit="utterances") as advance,
        parallel_config("loky", inner_max_num_threads=1),
    ):
        pool = Parallel(n_jobs=config.processes, return_as="generator_unordered")
        for attack, count, reasons in pool(delayed(_produce_all)(chunk, folder, config) for chunk in chunks):
            advance(count, attack)
            for reason in reasons:
                dropped[attack] += 1
                logger.debug("%s", reason)
    for attack, number in sorted(dropped.items()):
        logger.warning("%d utterances of '%s' could not be made and are left out", number, attack)
    return dropped


def _chunks(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Items of one attack together, so that a process opens few synthesisers; unseen, slow ones first."""
    by_attack: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_attack[item.attack].append(item)
    for group in reversed(by_attack.values()):
        yield from (group[i : i + CHUNK] for i in range(0, len(group), CHUNK))


def _produce_all(items: Sequence[Item], folder: Path, config: SpoofConfig) -> tuple[str, int, list[str]]:
    reasons = []
    for item in items:
        try:
            produce(item, _path(folder, item), config)
        except SpeechsslError as error:
            reasons.append(f"{item.id}: {error}")
    return items[0].attack, len(items), reasons


def produce(item: Item, path: Path, config: SpoofConfig) -> None:
    """Makes one utterance and writes it, whole or not at all.

    Raises:
        SpeechsslError: the synthesiser can't say it, or says too little.
    """
    conditioning, seed = config.conditioning, config.seed
    original = item.original
    waveform, rate = read_whole(original)
    # The real utterance and its copies begin with the same stretch of speech.
    segment = take_segment(waveform, rate, conditioning, item.generator(seed, f"segment {original.id}"))
    if item.attack != BONA_FIDE:
        attack = find_attack(item.attack)
        draw = item.generator(seed, f"synthesis {item.id}").initial_seed() % 2**31
        text, language = _words(original.labels["text"]), str(original.labels.get("language", ""))
        spoofed, sample_rate = _synthesiser(item.attack)(Source(text, language, segment, item.variant, draw))
        segment = (
            take_segment(spoofed, sample_rate, conditioning, item.generator(seed, f"segment {item.id}"))
            if attack.kind == "tts"
            else AF.resample(spoofed, sample_rate, SAMPLE_RATE)
        )
    finished = finish(segment, conditioning, item.generator(seed, f"finish {item.id}"))
    if finished is None:
        raise SpeechsslError(f"'{item.attack}' gives less than {conditioning.seconds} s of speech.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_flac(path, finished.numpy())


@cache
def _synthesiser(name: str) -> Synthesiser:
    return find_attack(name).load()


def _words(text: str) -> str:
    """The first words, up to `MAX_TEXT` characters."""
    if len(text) <= MAX_TEXT:
        return text
    return text[: MAX_TEXT + 1].rsplit(" ", 1)[0]


def _path(folder: Path, item: Item) -> Path:
    return folder / "audio" / item.split / f"{item.id}.flac"


def _clips(items: Sequence[Item], folder: Path, config: SpoofConfig) -> dict[str, list[Clip]]:
    """What was made, by split; an utterance whose real form is missing is left out in all its forms."""
    there = [item for item in items if _path(folder, item).exists()]
    real = {(item.split, item.original.id) for item in there if item.attack == BONA_FIDE}
    splits: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    for item in there:
        if (item.split, item.original.id) in real:
            splits[item.split].append(_clip(item, folder, config))
    return splits


def _check_classes(splits: Mapping[str, Sequence[Clip]], root: Path) -> None:
    """Sees that no class is without an example.

    Raises:
        SpeechsslError: a split without real or spoofed speech, or a test without an unseen attack.
    """
    for split, clips in splits.items():
        real = sum(clip.custom["attack"] == BONA_FIDE for clip in clips)
        kinds = {"real speech": real, "spoofed speech": len(clips) - real}
        if split == "test":
            kinds["speech of unseen attacks"] = sum(not clip.custom["seen"] for clip in clips)
        absent = next((kind for kind, count in kinds.items() if not count), None)
        if absent:
            raise SpeechsslError(
                f"No {absent} could be made for '{split}' of {root}: choose attacks that speak the languages of the "
                "corpus (`spoof.seen`, `spoof.unseen`), or lower `spoof.conditioning.seconds`; --debug says of each "
                "utterance why."
            )


def _clip(item: Item, folder: Path, config: SpoofConfig) -> Clip:
    labels = item.original.labels
    spoofed = item.attack != BONA_FIDE
    family = find_attack(item.attack).family if spoofed else "real speech"
    return Clip(
        id=item.id,
        path=_path(folder, item).relative_to(folder).as_posix(),
        samples=round(config.conditioning.seconds * SAMPLE_RATE),
        source=str(labels.get("source", "")),
        language=str(labels.get("language", "")),
        licence=str(labels.get("licence", "")),
        text=labels["text"],
        speaker=labels.get("speaker"),
        custom={
            "attack": item.attack,
            "family": family,
            "seen": not spoofed or item.attack in config.seen,
            "variant": item.variant,
            "original": item.original.id,
        },
    )


def _attack_info(attack: Attack, splits: Mapping[str, Sequence[Clip]], dropped: Mapping[str, int]) -> dict[str, object]:
    made = {s: sum(clip.custom["attack"] == attack.name for clip in clips) for s, clips in splits.items()}
    return {
        "name": attack.name,
        "family": attack.family,
        "kind": attack.kind,
        "needs": attack.needs,
        "utterances": made,
        "left_out": dropped.get(attack.name, 0),
    }
