"""The plan of a corpus that comes with lists of conversions, such as those of a challenge.

The lists `conversion_dev` and `conversion_test` (`speechssl.data.pairs`) say which source is converted to whom, in an
order of which `dev_pairs` and `test_pairs` take the beginning; `language` and `source_seconds` choose nothing there. A
target's reference and profile, and what a source's voice is known by, come from the split `reference` where the corpus
has one, and from `train` else; the head hears `train` alone.
"""

import logging
from collections.abc import Mapping, Sequence

from downstreams.voice_conversion.config import VoiceConversionConfig
from downstreams.voice_conversion.plan import SPLITS, Pair, Plan, Target, duration_of, shuffled, take
from speechssl.data.corpus import Corpus
from speechssl.data.pairs import LISTS
from speechssl.errors import ManifestError, SpeechsslError
from speechssl.text_files import read_lines
from speechssl.types import Utterance

logger = logging.getLogger(__name__)
REFERENCE = "reference"

Lines = Sequence[tuple[str, str, str]]
"""('<path>, line <n>,', id of the source, target speaker) of each conversion."""


def read_lists(corpus: Corpus) -> dict[str, Lines] | None:
    """Split -> its conversions; None where the corpus has not both lists.

    Raises:
        ManifestError: a line that is none.
    """
    files = corpus.info.get("files", {})
    if any(name not in files for name in LISTS.values()):
        return None
    found: dict[str, Lines] = {}
    for split, name in LISTS.items():
        lines = []
        for where, line in read_lines(corpus.root / files[name]):
            values = line.split()
            if len(values) != 2:
                raise ManifestError(f"{where} is '{line.strip()}', but must be a source and a target speaker.")
            lines.append((where, values[0], values[1]))
        found[split] = lines
    return found


def listed_plan(
    corpus: Corpus,
    splits: Mapping[str, Sequence[Utterance]],
    lists: Mapping[str, Lines],
    config: VoiceConversionConfig,
) -> Plan:
    """The conversions of both lists.

    Args:
        splits: utterances of 'train', 'dev' and 'test' that are long enough.

    Raises:
        SpeechsslError: a list names nobody of the corpus, or a speaker has too little speech.
    """
    pool = corpus.utterances(REFERENCE) if REFERENCE in corpus.splits() else splits["train"]
    spoken: dict[str, list[Utterance]] = {}
    for utterance in shuffled(pool):
        spoken.setdefault(str(utterance.labels.get("speaker")), []).append(utterance)
    counts = {"dev": config.dev_pairs, "test": config.test_pairs}
    pairs = {
        split: _pairs(lists[split], splits[split], spoken, counts[split], config, where=f"{split} of {corpus.root}")
        for split in SPLITS
    }
    everyone = [pair for split in SPLITS for pair in pairs[split]]
    held_out = [u for split in SPLITS for u in splits[split]]
    names = dict.fromkeys(pair.target for pair in everyone)
    targets = {name: _target(name, spoken[name], held_out, config, corpus) for name in names}
    speakers = sorted({str(pair.source.labels["speaker"]) for pair in everyone})
    known = {name: tuple(spoken.get(name, ())[: config.profile_utterances]) for name in speakers}
    return Plan(targets, known, pairs)


def _pairs(
    lines: Lines,
    utterances: Sequence[Utterance],
    spoken: Mapping[str, Sequence[Utterance]],
    count: int,
    config: VoiceConversionConfig,
    *,
    where: str,
) -> tuple[Pair, ...]:
    """The first `count` conversions of a list that can be made and judged."""
    sources = {u.id: u for u in utterances if u.labels.get("speaker") and str(u.labels.get("text") or "").strip()}
    if config.judges != "none":  # the judge of voices knows a source by other speech of his
        sources = {name: u for name, u in sources.items() if str(u.labels["speaker"]) in spoken}
    lacking = next((line for line in lines if line[2] not in spoken), None)
    if lacking is not None:
        raise ManifestError(
            f"{lacking[0]} converts to '{lacking[2]}', of whom the corpus has no speech: prepare the corpus again."
        )
    kept = [Pair(sources[name], target) for _, name, target in lines if name in sources]
    if not kept:
        raise SpeechsslError(
            f"No conversion listed for {where} has a source with text, speaker and other speech by which the judge of "
            "voices could know him: prepare the corpus again, or set `judges=none`."
        )
    if len(kept) < len(lines):
        message = "voice conversion: %d of the %d conversions listed for %s have no such source and are left out"
        logger.warning(message, len(lines) - len(kept), len(lines), where)
    return tuple(kept[:count])


def _target(
    name: str, spoken: Sequence[Utterance], others: Sequence[Utterance], config: VoiceConversionConfig, corpus: Corpus
) -> Target:
    profile, rest = spoken[: config.profile_utterances], spoken[config.profile_utterances :]
    held_out = shuffled(u for u in others if u.labels.get("speaker") == name)[:2]
    if not rest or not held_out:
        raise SpeechsslError(
            f"The target '{name}' of {corpus.root} has {len(spoken)} utterances to take from and {len(held_out)} in "
            f"'dev' and 'test', but needs {config.profile_utterances + 1} and 1: lower `profile_utterances`."
        )
    reference = take(rest, config.reference_seconds)
    seconds = sum(map(duration_of, reference))
    if seconds < 0.9 * config.reference_seconds:
        message = "voice conversion: the target '%s' has %.0f s of reference, not %.0f s"
        logger.info(message, name, seconds, config.reference_seconds)
    return Target(name, tuple(reference), tuple(profile), tuple(held_out))
