"""Transcribed utterances, and the subset that a config asks for."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from speechssl.ctc.config import CtcConfig
from speechssl.data.corpus import Corpus, where_is
from speechssl.data.seeds import derive_seed
from speechssl.errors import ManifestError
from speechssl.files import replacing
from speechssl.types import Utterance

logger = logging.getLogger(__name__)
SPLITS = ("train", "dev", "test")


def transcript_of(utterance: Utterance, key: str) -> str:
    """A label as text; '' where there is none."""
    return str(utterance.labels.get(key) or "").strip()


def read_splits(corpus: Corpus, config: CtcConfig, *, task: str, key: str = "text") -> Mapping[str, list[Utterance]]:
    """The transcribed utterances of 'train', 'dev' and 'test' that the config asks for.

    Args:
        task: named in messages; subsets of different tasks differ.
        key: the label that is the transcript.

    Raises:
        ManifestError: a language that the corpus does not have, a split without transcribed speech, or an empty
            transcript.
    """
    splits: dict[str, list[Utterance]] = {}
    for split in SPLITS:
        everything = corpus.utterances(split)
        transcribed = [u for u in everything if transcript_of(u, key)]
        _check_empty(corpus, config, split, [u for u in everything if key in u.labels and not transcript_of(u, key)])
        _check_languages(corpus, config, split, transcribed, key)
        kept = [u for u in transcribed if config.languages is None or u.labels.get("language") in config.languages]
        limit = config.max_train_utterances if split == "train" else config.max_eval_utterances
        if split == "train" and config.max_duration is not None:
            longest = config.max_duration
            kept = [u for u in kept if u.duration is None or u.duration <= longest]
        chosen = _subset(kept, limit, task)
        if not chosen:
            raise ManifestError(
                f"The corpus {corpus.root} keeps no utterance of '{split}' for {task}: raise `max_duration` or the "
                "number of utterances."
            )
        logger.info(
            "%s %s: %d utterances of %d (%d without %s, %d not asked for)",
            task,
            split,
            len(chosen),
            len(everything),
            len(everything) - len(transcribed),
            key,
            len(transcribed) - len(chosen),
        )
        splits[split] = chosen
    return splits


def write_transcripts(path: Path, names: Iterable[str], references: Iterable[str], hypotheses: Iterable[str]) -> str:
    """Writes utterance, reference and hypothesis per line, with tabs between, and returns the name of the file."""
    rows = zip(names, references, hypotheses, strict=True)
    lines = ["utterance\treference\thypothesis", *(f"{name}\t{r}\t{h}" for name, r, h in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path.name


def _check_empty(corpus: Corpus, config: CtcConfig, split: str, empty: Sequence[Utterance]) -> None:
    if not empty:
        return
    where = where_is(corpus.root, split, empty[0].id)
    told = f"{where} has an empty transcript of '{empty[0].id}' ({len(empty)} in '{split}')"
    if not config.leave_out_empty:
        raise ManifestError(f"{told}: mend it, or set `leave_out_empty=true`.")
    logger.warning("%s; these are left out", told)


def _check_languages(corpus: Corpus, config: CtcConfig, split: str, utterances: Sequence[Utterance], key: str) -> None:
    found = Counter(str(u.labels.get("language")) for u in utterances)
    if not utterances:
        raise ManifestError(
            f"The corpus {corpus.root} has no utterance in '{split}' with a transcript in '{key}' "
            f"(manifests/{split}.jsonl.gz): prepare a corpus that has them."
        )
    for language in config.languages or ():
        if language not in found:
            raise ManifestError(
                f"The corpus {corpus.root} has no transcribed '{language}' in '{split}': `languages` can be "
                f"{', '.join(sorted(found))}."
            )


def _subset(utterances: Sequence[Utterance], limit: int | None, task: str) -> list[Utterance]:
    """At most `limit` utterances per language: the same ones on every machine, in the order of the corpus."""
    if limit is None:
        return list(utterances)
    chosen: set[str] = set()
    for language in {u.labels.get("language") for u in utterances}:
        ids = [u.id for u in utterances if u.labels.get("language") == language]
        chosen.update(sorted(ids, key=lambda name: derive_seed(f"{task} subset", name))[:limit])
    return [u for u in utterances if u.id in chosen]
