"""What is converted to whose voice: sources, targets, and the pairs of them."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from speechssl.errors import SpeechsslError
from speechssl.types import Utterance

SPLITS = ("dev", "test")


@dataclass(frozen=True)
class Target:
    """A speaker whose voice is converted to."""

    speaker: str
    reference: tuple[Utterance, ...]
    """Speech that frames are taken from: of `target_splits`, or of the split `reference` where the corpus has one."""
    profile: tuple[Utterance, ...]
    """Other speech from there: what the judge of voices compares with."""
    held_out: tuple[Utterance, ...]
    """Speech that is neither: for the bounds and for `mel_distance`."""

    @property
    def language(self) -> str:
        """Of the first reference utterance."""
        return str(self.reference[0].labels.get("language", "unknown"))


@dataclass(frozen=True)
class Pair:
    """One conversion."""

    source: Utterance
    target: str
    """Speaker, a key of `Plan.targets`."""

    @property
    def id(self) -> str:
        """Names the files of the conversion."""
        return f"{self.source.id}-to-{self.target}".replace("/", "_")


@dataclass(frozen=True)
class Plan:
    """The conversions of both evaluated splits."""

    targets: Mapping[str, Target]
    sources: Mapping[str, tuple[Utterance, ...]]
    """Source speaker -> speech from there: what the judge of voices knows that voice by."""
    pairs: Mapping[str, tuple[Pair, ...]]
    """'dev' and 'test'."""
    parallels: Mapping[str, Utterance] = field(default_factory=dict)
    """Pair's id -> the target's own recording of the source's words, which is no reference; where there is one."""

    def fingerprint(self) -> str:
        """Equal pairs, references and profiles, equal fingerprint."""
        parts = [[p.id for p in self.pairs[s]] for s in SPLITS]
        parts += [[u.id for u in (*t.reference, *t.profile, *t.held_out)] for t in self.targets.values()]
        parts += [[u.id for u in spoken] for spoken in self.sources.values()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def find_parallels(plan: Plan, utterances: Iterable[Utterance]) -> dict[str, Utterance]:
    """Pair's id -> the first recording by the target of the words that the source says, but for its reference.

    Words are the same where their letters and digits are, without case and punctuation.
    """
    spoken: dict[tuple[str, str], Utterance] = {}
    for utterance in utterances:
        words = _letters(utterance)
        if words and utterance.labels.get("speaker") in plan.targets:
            spoken.setdefault((str(utterance.labels["speaker"]), words), utterance)
    found = {}
    for pair in (p for pairs in plan.pairs.values() for p in pairs):
        own = spoken.get((pair.target, _letters(pair.source)))
        if own is not None and own.id not in {u.id for u in plan.targets[pair.target].reference}:
            found[pair.id] = own
    return found


def _letters(utterance: Utterance) -> str:
    text = str(utterance.labels.get("text") or "").casefold()
    return "".join(letter for letter in text if letter.isalnum())


def take(utterances: Iterable[Utterance], seconds: float | None) -> list[Utterance]:
    """The first utterances up to the one that fills `seconds`; None = all."""
    taken: list[Utterance] = []
    total = 0.0
    for utterance in utterances:
        if seconds is not None and total >= seconds:
            break
        taken.append(utterance)
        total += duration_of(utterance)
    return taken


def shuffled(utterances: Iterable[Utterance]) -> list[Utterance]:
    """In the order of the hashes of their ids: mixed, yet the same everywhere."""
    return sorted(utterances, key=lambda u: hashlib.sha256(u.id.encode()).digest())


def duration_of(utterance: Utterance) -> float:
    """Seconds.

    Raises:
        SpeechsslError: the manifest does not say.
    """
    if utterance.duration is None:
        raise SpeechsslError(f"Utterance '{utterance.id}' has no duration: give one in its manifest.")
    return utterance.duration
