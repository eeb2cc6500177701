"""A corpus without any download of audio: sentences of our own, spoken by eSpeak NG.

Every voice speaks every language, so that speaker and language are not confounded. It stands in for real speech where
packages can't be had, in tests and to try things out; numbers on it say nothing about real speech.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

from speechssl.config import to_dict
from speechssl.data.espeak import Line, speak_all
from speechssl.data.manifests import Clip, normalise_text, split_by_speaker, split_by_text, write_corpus
from speechssl.data.phrases import PHRASES
from speechssl.errors import ConfigError, suggest
from speechssl.progress import progress

logger = logging.getLogger(__name__)
SPEAKERS: dict[str, tuple[str, int, str]] = {
    "low_man": ("m1", 35, "train"),
    "high_man": ("m3", 65, "train"),
    "deep_man": ("m7", 20, "dev"),
    "hoarse_man": ("m4", 50, "test"),
    "klatt_man": ("klatt", 40, "train"),
    "other_klatt_man": ("klatt4", 60, "dev"),
    "low_woman": ("f1", 35, "train"),
    "high_woman": ("f2", 65, "dev"),
    "young_woman": ("f3", 55, "train"),
    "soft_woman": ("f4", 45, "test"),
    "bright_woman": ("f5", 60, "train"),
    "old_woman": ("grandma", 50, "test"),
}
"""Speaker -> (variant of the library, pitch from 0 to 99, side of the speaker splits)."""
LICENCE = "CC0-1.0 (text and audio)"


@dataclass(frozen=True)
class SyntheticConfig:
    """About two hours."""

    languages: tuple[str, ...] = tuple(PHRASES)
    sentences: int = 150
    """Different sentences per language, from which every speaker gets his own choice."""
    sentences_per_speaker: int = 30
    """Per language."""
    seed: int = 0


def build_synthetic(root: Path, config: SyntheticConfig, *, workers: int = 2) -> dict[str, Any]:
    """Writes the corpus into `root` and returns what corpus.json holds.

    Raises:
        ConfigError: a language without phrases, or more sentences than there are.
        SpeechsslError: eSpeak NG can't be had.
    """
    lines = _lines(root / "audio" / "espeak", config)
    clips = _speak_all(root, lines, workers)
    splits = split_by_text(clips)
    splits |= split_by_speaker(clips, {name: side for name, (_, _, side) in SPEAKERS.items()})
    row = {
        "name": "espeak",
        "package": "espeakng-loader",
        "version": _version(),
        "licence": LICENCE,
        "hours": round(sum(clip.duration for clip in clips) / 3600, 4),
        "utterances": len(clips),
        "skipped": {},
        "bad": [],
    }
    return write_corpus(root, splits, name="demo", source="synthetic", sources=[row], extra={"config": to_dict(config)})


def _version() -> str:
    from importlib.metadata import version

    return version("espeakng-loader")


def _lines(folder: Path, config: SyntheticConfig) -> list[Line]:
    lines = []
    for language in config.languages:
        sentences = _sentences(language, config)
        for speaker, (variant, pitch, _) in SPEAKERS.items():
            random = Random(f"{config.seed}-{language}-{speaker}")
            for number, text in enumerate(random.sample(sentences, config.sentences_per_speaker)):
                name = f"{language}-{speaker}-{number:03d}"
                voice, target = f"{language}+{variant}", folder / f"{name}.flac"
                rate = random.randint(140, 200)
                lines.append(Line(name, target, text, voice, pitch, rate, language, speaker))
    return lines


def _sentences(language: str, config: SyntheticConfig) -> list[str]:
    if language not in PHRASES:
        raise ConfigError(f"There are no phrases in the language '{language}'.{suggest(language, PHRASES)}")
    every = [" ".join(parts) + "." for parts in product(*PHRASES[language])]
    if not config.sentences_per_speaker <= config.sentences <= len(every):
        raise ConfigError(
            f"`sentences` must be from `sentences_per_speaker` = {config.sentences_per_speaker} to {len(every)}, "
            f"but is {config.sentences}."
        )
    return Random(f"{config.seed}-{language}").sample(every, config.sentences)


def _speak_all(root: Path, lines: Sequence[Line], workers: int) -> list[Clip]:
    """Speaks in worker processes; the library isn't safe in threads."""
    (root / "audio" / "espeak").mkdir(parents=True, exist_ok=True)
    chunks = [lines[i : i + 60] for i in range(0, len(lines), 60)]
    samples: dict[str, int] = {}
    with (
        ProcessPoolExecutor(max(1, workers), mp_context=get_context("spawn")) as pool,
        progress("Speaking", len(lines), unit="sentences") as advance,
    ):
        for future in as_completed([pool.submit(speak_all, chunk) for chunk in chunks]):
            samples.update(future.result())
            advance(len(future.result()))
    return [_clip(root, line, samples[line.id]) for line in lines]


def _clip(root: Path, line: Line, samples: int) -> Clip:
    return Clip(
        id=line.id,
        path=line.target.relative_to(root).as_posix(),
        samples=samples,
        source="espeak",
        language=line.language,
        licence=LICENCE,
        text=normalise_text(line.text),
        raw_text=line.text,
        speaker=line.speaker,
    )
