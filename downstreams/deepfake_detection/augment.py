"""What training utterances are disturbed with: noise and rooms, RawBoost, codecs, in the order that speech meets them.

A frozen upstream hears a few disturbed copies of each utterance, which are drawn once, kept as files, and cached like
any other utterance (`with_views`). Where the upstream is trained from the waveform on, each visit may be disturbed.

S samples.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from joblib import Parallel, delayed, parallel_config
from torch import Tensor

from downstreams.deepfake_detection.config import AugmentConfig
from speechssl.audio import read_audio
from speechssl.augment.codec import code
from speechssl.augment.corrupt import corrupt
from speechssl.augment.rawboost import rawboost
from speechssl.data.flac import SAMPLE_RATE, write_flac
from speechssl.data.seeds import make_generator
from speechssl.progress import progress
from speechssl.types import Utterance

MARK = "#view"
"""Ends the id of the utterance in that of a disturbed copy."""
REVISION = 1
"""Raised when the same config would give other audio."""
CHUNK = 16  # copies that a process gets at a time


def disturb(config: AugmentConfig, waveform: Tensor, sample_rate: int, generator: torch.Generator) -> Tensor:
    """Disturbs one utterance.

    Args:
        waveform: (S,), in [-1, 1].
        sample_rate: Hz.
        generator: on the CPU; all draws are its, as many for each utterance as for any other.

    Returns:
        (S,) float32 on the CPU, scaled to a peak of 1 where it would be above.
    """
    turns = torch.rand(2, generator=generator).tolist()
    which = torch.rand(3, generator=generator).tolist()
    found = waveform.float().cpu()
    lengths = torch.tensor([found.numel()])
    found = corrupt(found[None], lengths, None, config=config.room, sample_rate=sample_rate, generator=generator)[0]
    if config.rawboost and turns[0] < config.rawboost_prob:
        algorithm = config.rawboost[int(which[0] * len(config.rawboost))]
        found = rawboost(found, algorithm, sample_rate=sample_rate, generator=generator)
    found = found / found.abs().max().clamp(min=1.0)  # codecs would clip
    if config.codecs and turns[1] < config.codec_prob:
        low, high = config.compression
        level = low + (high - low) * which[2]
        codec = config.codecs[int(which[1] * len(config.codecs))]
        found = code(found, codec, sample_rate=sample_rate, compression=level)
    return found / found.abs().max().clamp(min=1.0)


def with_views(
    utterances: Sequence[Utterance], config: AugmentConfig, folder: Path, *, processes: int = 1
) -> list[Utterance]:
    """The utterances, unless `config.clean` is false, and their disturbed copies, whose ids end in '#view<k>'.

    Args:
        folder: receives the copies of these settings, once; a file that exists is whole.
        processes: that make them.
    """
    if config.views == 0:
        return list(utterances)
    folder = folder / fingerprint(config)
    copies = [(u, number, _path(folder, u, number)) for u in utterances for number in range(config.views)]
    wanted = [copy for copy in copies if not copy[2].exists()]
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [wanted[i : i + CHUNK] for i in range(0, len(wanted), CHUNK)]
    with (
        progress("Disturbing training speech", len(wanted), unit="utterances") as advance,
        parallel_config("loky", inner_max_num_threads=1),
    ):
        pool = Parallel(n_jobs=processes, return_as="generator_unordered")
        for count in pool(delayed(_write_all)(chunk, config) for chunk in chunks):
            advance(count)
    views = (
        replace(utterance, id=f"{utterance.id}{MARK}{number}", path=str(path), start=0.0)
        for utterance, number, path in copies
    )
    return list(chain(utterances if config.clean else (), views))


def fingerprint(config: AugmentConfig) -> str:
    """Names what decides the audio of a copy; how many there are does not."""
    audible = {name: value for name, value in sorted(vars(config).items()) if name not in ("views", "clean", "anew")}
    return hashlib.sha256(f"{REVISION} {audible}".encode()).hexdigest()[:12]


def _path(folder: Path, utterance: Utterance, number: int) -> Path:
    stretch = f"{utterance.id} {utterance.path} {utterance.start} {utterance.duration} {number}"
    return folder / f"{hashlib.sha256(stretch.encode()).hexdigest()[:20]}.flac"


def _write_all(copies: Sequence[tuple[Utterance, int, Path]], config: AugmentConfig) -> int:
    for utterance, number, path in copies:
        waveform = read_audio(
            utterance.path, sample_rate=SAMPLE_RATE, start=utterance.start, duration=utterance.duration
        )
        generator = make_generator("view", config.seed, number, utterance.id)
        write_flac(path, disturb(config, waveform, SAMPLE_RATE, generator).numpy())
    return len(copies)
