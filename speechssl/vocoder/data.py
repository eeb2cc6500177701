"""Segments of a corpus, with the frames that a vocoder reads of them.

Shapes: B batch, S samples of a segment, T frames, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechssl.audio import audio_info
from speechssl.cache import FeatureCache
from speechssl.data.batching import BatchStream
from speechssl.data.indexed import UtteranceIndex
from speechssl.data.sources import open_sources
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.train.data import PretrainDataset, TrainBatch
from speechssl.train.selection import CropConfig
from speechssl.types import Utterance
from speechssl.upstream import Upstream
from speechssl.vocoder.config import VocoderConfig, VocoderTrainConfig
from speechssl.vocoder.frames import FrameReader, find_neighbours, keep_neighbours, kept_neighbours, neighbours_key
from speechssl.vocoder.inputs import FeatureSource
from speechssl.vocoder.mel import MelConfig

SILENT = 1e-4
"""Of the largest sample: 80 dB below full scale."""
LOOKED_AT = 16
"""Files whose sampling rate is read before a run begins."""
NEIGHBOURS_FILE = "neighbours.safetensors"


@dataclass(frozen=True)
class FeatureRequest:
    """Which features a vocoder is trained on."""

    upstream: Upstream
    name: str
    """As the user called it."""
    layer: int
    prematch: bool
    matching: int | None = None
    """Which hidden state prematching compares; None = `layer`."""

    @property
    def source(self) -> FeatureSource:
        """What is written beside the vocoder."""
        return FeatureSource(self.name, self.layer, self.upstream.fingerprint(), self.prematch, self.matching)


@dataclass(frozen=True)
class Segments:
    """One batch."""

    waveform: Tensor
    """(B, S)."""
    frames: Tensor | None
    """(B, T, D); None = log-mel, which is made of the waveform."""
    silent: int
    """How many are."""


class VocoderData:
    """What a run is trained on."""

    def __init__(
        self,
        dataset: PretrainDataset,
        config: VocoderConfig,
        *,
        frames: FrameReader | None,
        identity: dict[str, Any],
        title: str,
    ) -> None:
        """
        Args:
            frames: of all utterances of `dataset.index`; None = the vocoder reads log-mel.
            identity: what must be equal for a run to go on.
            title: for people.
        """
        self.dataset = dataset
        self.train: VocoderTrainConfig = config.train
        self.mel: MelConfig = config.model.mel
        self.frames = frames
        self.identity = identity
        self.title = title
        self._gains: dict[int, float] = {}

    def stream(self) -> BatchStream:
        """The order in which a run goes through the segments: each utterance once an epoch."""
        dataset, train = self.dataset, self.train
        shards = dataset.index.shards
        seconds = float(dataset.durations.max())
        return BatchStream(
            dataset.durations,
            batch_seconds=1.01 * seconds * train.batch_size,
            seed=train.seed,
            max_size=train.batch_size,
            shards=None if shards is None else shards[dataset.rows],
        )

    def segments(self, batch: TrainBatch) -> Segments:
        """The waveforms of a batch at their level, and their frames."""
        size, waveform = self.train.segment, batch.inputs.waveform
        whole = waveform.new_zeros(len(waveform), size)
        whole[:, : waveform.size(1)] = waveform[:, :size]  # a decoder may lack a few samples
        silent = int((whole.abs().amax(dim=1) < SILENT).sum())
        if self.train.peak is not None:
            whole *= torch.tensor([self._gain(item, self.train.peak) for item, _ in batch.places])[:, None]
        if self.frames is None:
            return Segments(whole, None, silent)
        hop, rows = self.mel.hop, self.dataset.rows
        frames = [self.frames.read(int(rows[item]), start // hop, size // hop) for item, start in batch.places]
        return Segments(whole, torch.stack(frames), silent)

    def _gain(self, item: int, peak: float) -> float:
        """What brings the loudest sample of the whole utterance to `peak`."""
        if item not in self._gains:
            row, audio = int(self.dataset.rows[item]), self.dataset.audio
            loudest = float(audio.read(row, 0, audio.size(row)).abs().max())
            self._gains[item] = peak / loudest if loudest >= SILENT else 1.0
        return self._gains[item]


def open_segments(
    corpora: Sequence[str | Path],
    *,
    split: str,
    config: VocoderConfig,
    request: FeatureRequest | None,
    folder: Path,
    device: torch.device,
) -> VocoderData:
    """Opens a corpus, and has the features computed that are wanted and not cached.

    Args:
        folder: of the run; keeps what prematching found.
        device: where neighbours are looked for.

    Raises:
        SpeechsslError: segments that don't fit the frames, utterances that are all too short, or audio at a lower
            sampling rate than the vocoder's.
    """
    mel, train = config.model.mel, config.train
    check_segment(config)
    source = open_sources(corpora, split)
    check_rates(source.index, mel.sample_rate)
    index: UtteranceIndex | list[Utterance] = source.index
    frames, rate = None, float(mel.sample_rate)
    if request is not None:
        check_frame_rate(request.upstream, mel)
        frames, index = _open_frames(
            list(source.index), request, train, folder=folder, device=device, corpus=source.fingerprint
        )
        rate = request.upstream.frame_rate
    seconds = train.segment / mel.sample_rate
    durations = np.array([u.duration for u in index], dtype=float) if isinstance(index, list) else index.durations
    if not np.nanmax(durations, initial=0.0) >= seconds and not np.isnan(durations).any():
        raise SpeechsslError(
            f"None of {len(durations)} utterances is as long as a segment of {seconds:.2f} s (the longest has "
            f"{durations.max():.2f} s): lower `train.segment`."
        )
    crop = CropConfig(mel.sample_rate, rate, seconds, seconds, train.seed, grid_seconds=seconds)
    dataset = PretrainDataset(index, [], crop, cache_gb=train.cache_gb, max_bad=train.max_bad)
    identity = {"corpus": source.fingerprint, "split": split}
    title = f"{source.name} {source.fingerprint[:12]} ({split})"
    return VocoderData(dataset, config, frames=frames, identity=identity, title=title)


def check_segment(config: VocoderConfig) -> None:
    """
    Raises:
        ConfigError: segments are no whole number of frames, or too short for their spectra.
    """
    segment, mel = config.train.segment, config.model.mel
    if segment % mel.hop or segment <= mel.n_fft:
        raise ConfigError(
            f"`train.segment` must be a multiple of mel.hop = {mel.hop} and above mel.n_fft = {mel.n_fft} samples, but "
            f"is {segment}."
        )


def check_frame_rate(upstream: Upstream, mel: MelConfig) -> None:
    """
    Raises:
        ConfigError: a frame of the upstream doesn't stand for a hop of the vocoder.
    """
    if abs(mel.hop * upstream.frame_rate - mel.sample_rate) > 1e-6 * mel.sample_rate:
        wanted = mel.sample_rate / upstream.frame_rate
        raise ConfigError(
            f"'{upstream.name}' has {upstream.frame_rate:g} frames per second, so that `model.mel.hop` must be "
            f"{wanted:g} at {mel.sample_rate} Hz, but is {mel.hop}."
        )


def check_rates(index: UtteranceIndex, sample_rate: int) -> None:
    """Looks at a few files.

    Raises:
        SpeechsslError: one has a lower sampling rate: nothing above its half could be learnt.
    """
    for number in sorted({len(index) * k // LOOKED_AT for k in range(LOOKED_AT)}):
        path = index.utterance(number).path
        found = audio_info(path).sample_rate
        if found < sample_rate:
            raise SpeechsslError(
                f"{path} has {found} Hz, below the {sample_rate} Hz of the vocoder: set `model.mel.sample_rate` (and "
                "what depends on it), or give a corpus at a higher rate."
            )


def _open_frames(
    utterances: list[Utterance],
    request: FeatureRequest,
    train: VocoderTrainConfig,
    *,
    folder: Path,
    device: torch.device,
    corpus: str,
) -> tuple[FrameReader, list[Utterance]]:
    """The frames of all utterances, and these cut to what their frames stand for."""
    upstream = request.upstream
    store = FeatureCache().features(upstream, utterances, layers=[request.layer])
    ids = [u.id for u in utterances]
    neighbours = None
    if request.prematch:
        least = round(train.least_pool * upstream.frame_rate)
        matching = request.layer if request.matching is None else request.matching
        compared = store
        if matching != request.layer:
            compared = FeatureCache().features(upstream, utterances, layers=[matching])
        key = neighbours_key(corpus, upstream.fingerprint(), matching, train.neighbours, least)
        neighbours = kept_neighbours(folder / NEIGHBOURS_FILE, key=key)
        if neighbours is None:
            neighbours = find_neighbours(compared, utterances, k=train.neighbours, least=least, device=device)
            keep_neighbours(folder / NEIGHBOURS_FILE, neighbours, key=key)
    frames = FrameReader(store, ids, neighbours)
    cut = []
    for number, utterance in enumerate(utterances):
        seconds = frames.length(number) / upstream.frame_rate
        known = seconds if utterance.duration is None else min(utterance.duration, seconds)
        cut.append(replace(utterance, duration=known))
    return frames, cut
