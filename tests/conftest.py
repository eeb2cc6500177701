"""Fixtures for every test: a tiny corpus that is made in a second and needs no network."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from parity_table import pytest_addoption, pytest_configure  # noqa: F401  # hooks
from pretrain_corpora import index_folder, manifest, shar, tone_files  # noqa: F401  # fixtures

from speechssl.data.flac import SAMPLE_RATE
from speechssl.data.manifests import Clip, split_by_speaker, write_corpus

LANGUAGES = {
    "aa": ["ba", "do", "ki", "mu", "na", "se", "ti", "lo", "bado", "kimu", "nase", "tilo", "dona", "mulo"],
    "bb": ["gar", "bel", "dim", "fon", "rus", "tak", "wel", "gim", "barf", "delt", "rond", "sulk"],
}
SPEAKER_SIDES = {
    "aa0": "train", "aa1": "train", "aa2": "dev", "aa3": "dev",
    "bb0": "train", "bb1": "train", "bb2": "test", "bb3": "test",
}  # fmt: skip
LETTER = 0.11  # seconds
SENTENCES = 10  # per language, each said by all four speakers

if "PYTEST_XDIST_WORKER" in os.environ:  # there is a worker for each core
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a corpus of 82 utterances (0.8 to 2.5 s), 8 speakers, 2 languages; open it with `open_corpus`.

    Each letter has formants of its own and each speaker a pitch and a vocal tract length of its own, so that
    recognisers and speaker models have something true to learn. Sentences 3 and 8 of each language are dev, 4 and 9
    test; two utterances have no text. Of the speakers, aa2 and aa3 are speaker_dev, bb2 and bb3 speaker_test.
    """
    root = tmp_path_factory.mktemp("tiny_corpus")
    clips = list(_clips(root))
    splits: dict[str, list[Clip]] = {"train": [], "dev": [], "test": []}
    for clip in clips:
        position = clip.custom["sentence"] % 5
        splits["dev" if position == 3 else "test" if position == 4 else "train"].append(clip)
    splits.update(split_by_speaker(clips, SPEAKER_SIDES))
    row = {
        "package": "tones", "version": "1", "licence": "CC0-1.0",
        "hours": round(sum(c.duration for c in clips) / 3600, 4), "utterances": len(clips), "skipped": {},
    }  # fmt: skip
    write_corpus(root, splits, name="tiny", source="synthetic", sources=[row])
    return root


def _clips(root: Path) -> Iterator[Clip]:
    generator = np.random.default_rng(0)
    (root / "audio").mkdir()
    for speaker in SPEAKER_SIDES:
        language = speaker[:2]
        choice = np.random.default_rng(1)  # the same sentences for all speakers of a language
        for sentence in range(SENTENCES):
            words = choice.choice(LANGUAGES[language], size=1 + sentence % 4)
            text = " ".join([str(word) for word in words] + [LANGUAGES[language][sentence]])
            yield _clip(root, speaker, sentence, text, generator)
    for number in range(2):
        clip = _clip(root, "aa0", 10 + 5 * number, "naba kidose tilo", generator)
        yield Clip(**{**vars(clip), "text": None, "raw_text": None})


def _clip(root: Path, speaker: str, sentence: int, text: str, generator: np.random.Generator) -> Clip:
    number = list(SPEAKER_SIDES).index(speaker)
    waveform = _speak(text, pitch=90.0 + 22.0 * number, tract=0.85 + 0.05 * number, generator=generator)
    path = f"audio/{speaker}-{sentence:02d}.flac"
    soundfile.write(root / path, waveform, SAMPLE_RATE, subtype="PCM_16")
    return Clip(
        id=f"{speaker}-{sentence:02d}", path=path, samples=len(waveform), source="tones", language=speaker[:2],
        licence="CC0-1.0", text=text, raw_text=text.capitalize() + ".", speaker=speaker,
        custom={"sentence": sentence},
    )  # fmt: skip


def _speak(text: str, *, pitch: float, tract: float, generator: np.random.Generator) -> np.ndarray:
    """Harmonics of `pitch` (Hz), shaped by two resonances per letter that scale with `tract`; a space is a pause."""
    size = int(LETTER * SAMPLE_RATE)
    time = np.arange(size) / SAMPLE_RATE
    harmonics = np.arange(1, 24)[:, None] * pitch * generator.uniform(0.97, 1.03)
    tones = np.sin(2 * np.pi * harmonics * time)
    pieces = [np.zeros(size)]
    for letter in text:
        code = ord(letter) - ord("a")
        centres = np.array([[300.0 + 25.0 * code], [900.0 + 61.0 * (code * 7 % 26)]]) * tract  # (2, 1) Hz
        weights = np.exp(-(((harmonics.T - centres) / 120.0) ** 2)).sum(axis=0)  # (harmonics,)
        sound = weights @ tones if letter != " " else np.zeros(size)
        pieces.append(sound * np.hanning(size) / 3)
    waveform = np.concatenate([*pieces, np.zeros(size)])
    return np.clip(0.5 * waveform + generator.normal(0.0, 0.003, len(waveform)), -1.0, 1.0).astype(np.float32)


@pytest.fixture
def files_no_larger_than() -> Callable[[int], AbstractContextManager[None]]:
    """Within `files_no_larger_than(size)` every write beyond `size` bytes of a file fails, as on a full disk."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
