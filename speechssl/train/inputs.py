"""From the paths of corpora, labels and noise to the dataset of a run."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechssl.audio import audio_info
from speechssl.data.indexed import ListedIndex
from speechssl.data.sources import Source, is_source, open_source, open_sources
from speechssl.errors import SpeechsslError
from speechssl.inputs import resolve_items
from speechssl.objective import Labelling
from speechssl.targets.labels import label_path, load_labels
from speechssl.train.config import PretrainConfig
from speechssl.train.data import PretrainDataset
from speechssl.train.selection import CropConfig, TranscriptConfig
from speechssl.types import Utterance
from speechssl.upstream import Upstream


@dataclass(frozen=True)
class RunData:
    """What a run is trained on."""

    dataset: PretrainDataset
    labelling: Labelling
    identity: dict[str, Any]
    """What must be equal for a run to go on."""
    title: str
    """For people."""


def open_data(
    corpora: Sequence[str | Path],
    labels: Sequence[str | Path],
    *,
    split: str,
    upstream: Upstream,
    config: PretrainConfig,
) -> RunData:
    """Opens everything, and checks that it belongs together.

    Args:
        corpora: as `open_source` takes them.
        labels: folders of `speechssl cluster` of the same corpora.

    Raises:
        SpeechsslError: labels of another corpus, or utterances of which none can be trained on.
    """
    source = open_sources(corpora, split)
    sets = [load_labels(label_path(Path(folder), split)) for folder in labels]
    for folder, label_set in zip(labels, sets, strict=True):
        if label_set.corpus != source.fingerprint:
            raise SpeechsslError(
                f"The labels in {folder} are of another corpus than {source.name} (or it was prepared anew): run "
                "`speechssl cluster` again, with the same `--corpus` in the same order."
            )
    crop = CropConfig(
        upstream.sample_rate,
        upstream.frame_rate,
        config.min_seconds,
        config.max_seconds,
        config.seed,
        config.grid_seconds,
    )
    transcripts = None
    if config.transcripts is not None:
        transcripts = TranscriptConfig(config.transcripts, config.transcript_units)
    noise = None if config.noise is None else open_noise(config.noise, split)
    dataset = PretrainDataset(
        source.index,
        sets,
        crop,
        cache_gb=config.cache_gb,
        noise=None if noise is None else noise.index,
        transcripts=transcripts,
        max_bad=config.max_bad,
    )
    found = dataset.transcripts
    labelling = Labelling(
        tuple(s.num_labels for s in dataset.labels),
        tuple(s.label_rate for s in dataset.labels),
        None if found is None else found.num_tokens,
    )
    identity: dict[str, Any] = {
        "corpus": source.fingerprint,
        "labels": [s.fingerprint() for s in sets],
        "noise": None if noise is None else noise.fingerprint,
        "vocabulary": None if found is None else list(found.vocabulary),
    }
    return RunData(dataset, labelling, identity, f"{source.name} {source.fingerprint[:12]} ({split})")


def open_noise(path: str | Path, split: str) -> Source:
    """The clips that noise is drawn from: a corpus, a manifest, a Shar folder, or a folder of audio files.

    Raises:
        SpeechsslError: nothing of these, or a file that can't be read.
    """
    if is_source(Path(path)):
        return open_source(path, split)
    clips = [
        Utterance(u.id, u.path, u.start, u.duration or audio_info(u.path).duration - u.start)
        for u in resolve_items(path)
    ]
    digest = hashlib.sha256("\n".join(f"{c.id} {c.start} {c.duration}" for c in clips).encode())
    return Source(Path(path), Path(path).name, digest.hexdigest(), ListedIndex(clips))
