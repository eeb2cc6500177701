"""Corpora of every kind that pre-training reads, as fixtures (see conftest)."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.data import sources
from speechssl.types import Utterance


@pytest.fixture
def index_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Indexes of manifests of any size go here."""
    monkeypatch.setenv("SPEECHSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "SMALL", 0)
    return tmp_path / "cache" / "manifests"


@pytest.fixture(scope="module")
def manifest(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training cuts of the tiny corpus with absolute paths, in a file of their own."""
    from lhotse import CutSet

    path = tmp_path_factory.mktemp("manifest") / "cuts.jsonl.gz"
    cuts = CutSet.from_file(tiny_corpus / "manifests" / "train.jsonl.gz")
    cuts.with_recording_path_prefix(tiny_corpus).to_file(path)
    return path


@pytest.fixture(scope="module")
def shar(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in archives of ten cuts."""
    from lhotse import CutSet
    from lhotse.shar import SharWriter

    folder = tmp_path_factory.mktemp("shar")
    with SharWriter(str(folder), fields={"recording": "flac"}, shard_size=10) as writer:
        for cut in CutSet.from_file(manifest):
            writer.write(cut)
    return folder


@pytest.fixture
def tone_files(tmp_path: Path) -> list[Utterance]:
    """Twelve files of 0.6 to 1.7 s at several sampling rates; the frequency says which is which."""
    found = []
    for number in range(12):
        rate, seconds = (8_000, 16_000, 44_100)[number % 3], 0.6 + 0.1 * number
        time_axis = np.arange(round(seconds * rate)) / rate
        path = tmp_path / f"tone{number}.flac"
        soundfile.write(path, 0.5 * np.sin(2 * np.pi * (200 + 100 * number) * time_axis), rate)
        labels = {"text": "ab " * (1 + number % 4), "phones": f"P{number} Q Q"}
        found.append(Utterance(f"tone{number}", str(path), 0.0, seconds, labels))
    return found


def rewrite(manifest: Path, folder: Path, change: dict[int, bytes]) -> Path:
    lines = gzip.decompress(manifest.read_bytes()).splitlines(keepends=True)
    for number, line in change.items():
        lines[number - 1] = line
    path = folder / "changed.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(lines)))
    return path
