"""Makes mixtures out of a corpus' own utterances, once, below the corpus folder.

They stand in for Libri2Mix and VoiceBank-DEMAND in demonstrations; numbers on them say nothing about those. Splits are
made of the splits by speaker, so that nobody is heard on two sides; labels are named as in the published corpora.

<corpus>/mixtures/<kind>-<hash of settings and corpus>/<split>/index.json       written last
                                                             /<n>[-s1].flac
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from speechssl.audio import read_audio
from speechssl.augment.additive import coloured_noise
from speechssl.config import to_dict
from speechssl.data.corpus import Corpus
from speechssl.data.flac import SAMPLE_RATE, write_flac
from speechssl.data.seeds import make_generator
from speechssl.errors import ConfigError, ManifestError
from speechssl.files import replacing
from speechssl.mixing.signals import Turn, at_level, converse, overlay, trim_silence
from speechssl.progress import progress
from speechssl.types import Utterance

logger = logging.getLogger(__name__)
Kind = Literal["voices", "noise", "conversations"]
"""'voices': two at once, label `sources`. 'noise': speech in noise, label `clean`. 'conversations': two by turns, label
`segments`."""
LEVEL_DB = -26.0
"""Root mean square of the louder part, below full scale."""
BABBLE = 3  # voices in a babble
SHORTEST = 1.0  # seconds; shorter utterances take no part


@dataclass(frozen=True)
class SimulationConfig:
    """How many mixtures, and of what length."""

    train: int = 100
    dev: int = 25
    test: int = 25
    duration: float = 3.0
    """Seconds at most (of conversations: at least, and less than one turn more)."""
    snr_db: tuple[float, float] = (-5.0, 5.0)
    """Level of the first voice, or of speech, over the second, or noise: drawn evenly."""
    pause: tuple[float, float] = (-1.0, 0.5)
    """Seconds between turns of a conversation, drawn evenly; below 0 they overlap."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.train, self.dev, self.test) < 1:
            raise ConfigError(
                f"`simulate.train`, `dev` and `test` must be 1 or more, but are {self.train}, {self.dev}, {self.test}."
            )
        if self.duration < SHORTEST:
            raise ConfigError(f"`simulate.duration` must be {SHORTEST} s or more, but is {self.duration}.")


def simulate(corpus: Corpus, kind: Kind, config: SimulationConfig) -> Mapping[str, list[Utterance]]:
    """The mixtures of 'train', 'dev' and 'test'; made where they are not there yet, the same on every machine.

    Raises:
        ManifestError: a split by speaker that the corpus lacks, or with fewer than two speakers.
    """
    settings = json.dumps([kind, corpus.fingerprint, to_dict(config)], sort_keys=True)
    folder = corpus.root / "mixtures" / f"{kind}-{hashlib.sha256(settings.encode()).hexdigest()[:16]}"
    sizes = {"train": config.train, "dev": config.dev, "test": config.test}
    return {split: _split(corpus, kind, config, folder=folder / split, size=size) for split, size in sizes.items()}


def _split(corpus: Corpus, kind: Kind, config: SimulationConfig, *, folder: Path, size: int) -> list[Utterance]:
    split, index = folder.name, folder / "index.json"
    if not index.is_file():
        voices = _voices(corpus, split)
        make: Callable[..., dict[str, Any]] = {"voices": _overlaid, "noise": _noisy, "conversations": _conversation}[
            kind
        ]
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        with progress(f"Mixing {kind} ({split})", size, unit="files") as advance:
            for number in range(size):
                generator = make_generator("mixtures", kind, config.seed, split, number)
                rows.append(make(voices, config, generator, folder / f"{number:05d}"))
                advance(1.0)
        with replacing(index) as partial:
            partial.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
        logger.info("%d mixtures (%s) are in %s", size, kind, folder)
    rows = json.loads(index.read_text(encoding="utf-8"))
    return [_utterance(row, folder, f"{folder.parent.name}-{split}-{number:05d}") for number, row in enumerate(rows)]


def _utterance(row: Mapping[str, Any], folder: Path, name: str) -> Utterance:
    labels = dict(row["labels"])
    if "sources" in labels:
        labels["sources"] = [str(folder / path) for path in labels["sources"]]
    if "clean" in labels:
        labels["clean"] = str(folder / labels["clean"])
    return Utterance(name, str(folder / row["path"]), 0.0, row["duration"], labels)


Voices = Mapping[str, Sequence[Utterance]]
"""Speaker -> what he says."""


def _voices(corpus: Corpus, split: str) -> Voices:
    found: dict[str, list[Utterance]] = {}
    everything = corpus.utterances(f"speaker_{split}")
    for utterance in everything:
        if utterance.labels.get("speaker") and (utterance.duration or 0.0) >= SHORTEST:
            found.setdefault(str(utterance.labels["speaker"]), []).append(utterance)
    left_out = len(everything) - sum(map(len, found.values()))
    if left_out:
        message = "%d of %d utterances of 'speaker_%s' are below %g s or without a speaker, and are not mixed"
        logger.info(message, left_out, len(everything), split, SHORTEST)
    if len(found) < 2:
        raise ManifestError(
            f"The corpus {corpus.root} has {len(found)} speakers with utterances of {SHORTEST} s or more in "
            f"'speaker_{split}': mixtures need two; prepare a larger corpus."
        )
    return {speaker: sorted(found[speaker], key=lambda u: u.id) for speaker in sorted(found)}


def _two_speakers(voices: Voices, generator: torch.Generator) -> list[str]:
    names = list(voices)
    return [names[i] for i in torch.randperm(len(names), generator=generator)[:2].tolist()]


def _say(voices: Voices, speaker: str, generator: torch.Generator, *, longest: float) -> Tensor:
    """A random utterance of a speaker that is not silent, without the silence around it, cut to `longest` s; (S,)."""
    choices = voices[speaker]
    for choice in torch.randperm(len(choices), generator=generator).tolist():
        u = choices[choice]
        waveform = read_audio(u.path, sample_rate=SAMPLE_RATE, start=u.start, duration=u.duration)
        if bool(waveform.any()):
            return at_level(trim_silence(waveform, sample_rate=SAMPLE_RATE)[: round(longest * SAMPLE_RATE)], LEVEL_DB)
        logger.info("%s is silent, and takes no part in mixtures", u.path)
    raise ManifestError(f"All utterances of the speaker '{speaker}' are silent: leave him out of the corpus.")


def _draw(bounds: tuple[float, float], generator: torch.Generator) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * float(torch.rand((), generator=generator))


def _overlaid(voices: Voices, config: SimulationConfig, generator: torch.Generator, stem: Path) -> dict[str, Any]:
    speakers = _two_speakers(voices, generator)
    first, second = (_say(voices, s, generator, longest=config.duration) for s in speakers)
    mixture, sources = overlay([first, at_level(second, LEVEL_DB - _draw(config.snr_db, generator))])
    names = [_write(stem, f"-s{k + 1}", source) for k, source in enumerate(sources)]
    labels = {"sources": names, "speakers": speakers}
    return {"path": _write(stem, "", mixture), "duration": len(mixture) / SAMPLE_RATE, "labels": labels}


def _noisy(voices: Voices, config: SimulationConfig, generator: torch.Generator, stem: Path) -> dict[str, Any]:
    speaker = _two_speakers(voices, generator)[0]
    clean = _say(voices, speaker, generator, longest=config.duration)
    babble = bool(torch.rand((), generator=generator) < 0.5)
    noise = (
        _babble(voices, speaker, generator, len(clean))
        if babble
        else coloured_noise(clean[None], generator=generator)[0]
    )
    mixture, sources = overlay([clean, at_level(noise, LEVEL_DB - _draw(config.snr_db, generator))])
    labels = {
        "clean": _write(stem, "-clean", sources[0]),
        "speaker": speaker,
        "noise": "babble" if babble else "coloured",
    }
    return {"path": _write(stem, "", mixture), "duration": len(mixture) / SAMPLE_RATE, "labels": labels}


def _babble(voices: Voices, speaker: str, generator: torch.Generator, size: int) -> Tensor:
    """Others than `speaker` at once, repeated to `size` samples."""
    others = [name for name in voices if name != speaker]
    noise = torch.zeros(size)
    for _ in range(BABBLE):
        name = others[int(torch.randint(len(others), (), generator=generator))]
        said = _say(voices, name, generator, longest=size / SAMPLE_RATE)
        noise += said.repeat(-(-size // len(said)))[:size]
    return noise


def _conversation(voices: Voices, config: SimulationConfig, generator: torch.Generator, stem: Path) -> dict[str, Any]:
    speakers = _two_speakers(voices, generator)
    turns: list[Turn] = []
    pauses: list[float] = []
    seconds = 0.0
    while seconds < config.duration or len(turns) < len(speakers):
        speaker = speakers[len(turns) % len(speakers)]
        waveform = _say(voices, speaker, generator, longest=config.duration / 2)
        level = LEVEL_DB - (_draw(config.snr_db, generator) if speaker == speakers[1] else 0.0)
        turns.append(Turn(speaker, at_level(waveform, level)))
        pauses.append(_draw(config.pause, generator) if pauses else abs(_draw(config.pause, generator)) / 2)
        seconds += pauses[-1] + len(waveform) / SAMPLE_RATE
    recording, segments = converse(turns, pauses=pauses, sample_rate=SAMPLE_RATE)
    labels = {"segments": [list(segment) for segment in segments], "speakers": sorted(speakers)}
    return {"path": _write(stem, "", recording), "duration": len(recording) / SAMPLE_RATE, "labels": labels}


def _write(stem: Path, suffix: str, waveform: Tensor) -> str:
    path = stem.with_name(f"{stem.name}{suffix}.flac")
    # As whole numbers: libsndfile scales floats by 32767, so that a mixture would not quite be the sum of its sources.
    samples: Any = (waveform * 32768).round().clamp(-32768, 32767).to(torch.int16).numpy()
    write_flac(path, samples)
    return path.name
