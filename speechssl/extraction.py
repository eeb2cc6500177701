"""Features of audio files: `extract` reads ahead in threads, batches by duration, and yields one utterance at a time.

B batch, S samples, T frames, D width. Features come out as float32 on the CPU, trimmed to the valid frames.
"""

import logging
import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from speechssl.audio import audio_info, read_audio
from speechssl.data.batching import bucket_batches
from speechssl.devices import deal, in_turn, replicate
from speechssl.errors import AudioError
from speechssl.forward import Precision, evaluating, forward_batch
from speechssl.inputs import Items, resolve_items
from speechssl.long_audio import CONTEXT, extract_long
from speechssl.progress import progress
from speechssl.types import HiddenStates, Utterance
from speechssl.upstream import Upstream

__all__ = ["Items", "Precision", "extract", "find_bad", "leave_out", "measure", "resolve_items"]

logger = logging.getLogger(__name__)

MAX_BATCH = 64
"""Most utterances per batch, whatever their length."""
AHEAD = 2
"""Batches that are read while one is computed."""


def extract(
    upstream: Upstream,
    items: Items,
    *,
    layers: Sequence[int] | None = None,
    batch_seconds: float = 60.0,
    workers: int = 2,
    precision: Precision = "float32",
    in_order: bool = False,
    skip_bad: bool = False,
    bad: MutableMapping[str, str] | None = None,
    chunk: float | None = None,
    context: float = CONTEXT,
    devices: Sequence[torch.device] = (),
) -> Generator[tuple[Utterance, HiddenStates], None, None]:
    """Yields the features of each utterance.

    The order is that of the batches, from the longest utterances to the shortest, so that little is padding and what
    does not fit into memory shows at once; `in_order` keeps the order of `items`, and pads more.

    Args:
        items: see `Items`.
        layers: which of the L+1 hidden states (negative counts from the end); None = all.
        batch_seconds: of audio per batch, padding included; a longer file is a batch of its own.
        workers: threads that read and resample ahead of the computation.
        precision: 'bf16' computes under autocast.
        skip_bad: leaves out what can't be read or is too short, with a log line each and their count at the end.
        bad: receives utterance id -> sentence for each that was left out.
        chunk: seconds; what is longer is computed in windows of this length, so that its memory does not grow with it
            (its features still do: `extract_long` hands them on in pieces). None = everything in one go.
        context: seconds on both sides of a chunk that are computed with it and dropped.
        devices: several compute side by side, batch k with a copy of the upstream on device k modulo their number;
            fewer than two = the upstream computes where its weights are.

    Yields:
        (utterance, features): `features[layer]` is (T, D) float32 on the CPU.

    Raises:
        AudioError: a bad file, unless `skip_bad`.
        ManifestError: a manifest that can't be read, or two utterances with one id.
    """
    utterances = resolve_items(items)
    failures: MutableMapping[str, str] = {} if bad is None else bad
    durations = measure(utterances, workers=workers, skip_bad=skip_bad, bad=failures)
    utterances = [u for u in utterances if u.id in durations]
    seconds = [durations[u.id] for u in utterances]
    # What is longer than a chunk is a batch of its own, and not read in one go.
    sizes = [math.inf if chunk is not None and s > chunk else s for s in seconds]
    chosen = _consecutive(sizes, batch_seconds) if in_order else _longest_first(sizes, batch_seconds)
    batches = [_Batch([utterances[i] for i in b], long=math.isinf(sizes[b[0]])) for b in chosen]
    settings = _Settings(layers, workers, precision, skip_bad, failures, chunk or 0.0, context)
    with evaluating(upstream):
        copies = replicate(upstream, devices[: len(batches)])
        parts = deal(batches, len(copies))
        with closing(in_turn([_compute(own, part, settings) for own, part in zip(copies, parts, strict=True)])) as made:
            for features in made:
                yield from features
    if failures:
        logger.warning("%d of %d utterances were left out.", len(failures), len(failures) + len(durations))


@dataclass(frozen=True)
class _Batch:
    utterances: list[Utterance]
    long: bool
    """Whether it is one utterance, to be computed in chunks."""


@dataclass(frozen=True)
class _Settings:
    """What `extract` was asked for."""

    layers: Sequence[int] | None
    workers: int
    precision: Precision
    skip_bad: bool
    bad: MutableMapping[str, str]
    chunk: float
    context: float


def _compute(
    upstream: Upstream, batches: Sequence[_Batch], settings: _Settings
) -> Generator[Iterable[tuple[Utterance, HiddenStates]], None, None]:
    """Yields the features of each batch, of which nothing may be left."""
    for batch, waveforms in _read_ahead(upstream, batches, settings.workers):
        if batch.long:
            yield _long_features(upstream, batch.utterances[0], settings)
        else:
            kept = _usable(upstream, batch.utterances, waveforms, settings.skip_bad, settings.bad)
            yield _features(upstream, kept, settings) if kept else ()


def measure(
    utterances: Sequence[Utterance],
    *,
    workers: int = 2,
    skip_bad: bool = False,
    bad: MutableMapping[str, str] | None = None,
) -> dict[str, float]:
    """Returns seconds per utterance id: the given duration, or what the file's header says.

    Raises:
        AudioError: a file that can't be read, unless `skip_bad`; then it goes into `bad` and is left out.
    """
    durations: dict[str, float] = {}
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        for utterance, outcome in zip(utterances, pool.map(_duration, utterances), strict=True):
            if isinstance(outcome, AudioError):
                leave_out(utterance, outcome, skip_bad, bad)
            else:
                durations[utterance.id] = outcome
    return durations


def measure_heard(
    upstream: Upstream, utterances: Sequence[Utterance], *, skip_bad: bool, bad: MutableMapping[str, str] | None
) -> dict[str, float]:
    """Seconds per id of the utterances that an upstream can hear: as `measure`, without those shorter than a frame."""
    seconds = measure(utterances, skip_bad=skip_bad, bad=bad)
    known = [utterance for utterance in utterances if utterance.id in seconds]
    samples = torch.tensor([round(seconds[u.id] * upstream.sample_rate) for u in known], dtype=torch.int64)
    for utterance, frames in zip(known, upstream.output_lengths(samples).tolist(), strict=True):
        if frames < 1:
            leave_out(utterance, _too_short(upstream, utterance, seconds.pop(utterance.id)), skip_bad, bad)
    return seconds


def find_bad(utterances: Sequence[Utterance], *, workers: int = 2) -> dict[str, str]:
    """Reads all audio once, and returns what is wrong per id of an utterance that can't be used; each is logged."""
    bad: dict[str, str] = {}
    with (
        progress("Looking for bad files", len(utterances), unit="files") as advance,
        ThreadPoolExecutor(max(workers, 1)) as pool,
    ):
        for utterance, reason in zip(utterances, pool.map(_wrong, utterances), strict=True):
            advance(1.0)
            if reason is not None:
                leave_out(utterance, reason, True, bad)
    return bad


def _wrong(utterance: Utterance) -> AudioError | None:
    """Why an utterance can't be used; its audio is not kept."""
    try:
        rate = audio_info(utterance.path).sample_rate
    except AudioError as error:
        return error
    outcome = _read(utterance, rate)
    return outcome if isinstance(outcome, AudioError) else None


def _duration(utterance: Utterance) -> float | AudioError:
    try:
        if utterance.duration is not None:
            return utterance.duration
        return audio_info(utterance.path).duration - utterance.start
    except AudioError as error:
        return error


def leave_out(utterance: Utterance, error: AudioError, skip_bad: bool, bad: MutableMapping[str, str] | None) -> None:
    """Raises the error; or, to `skip_bad`, logs it and notes it in `bad`."""
    if not skip_bad:
        raise error
    logger.warning("Left out: %s", error)
    if bad is not None:
        bad[utterance.id] = str(error)


def _longest_first(seconds: Sequence[float], batch_seconds: float) -> list[list[int]]:
    return bucket_batches(seconds, batch_seconds=batch_seconds, max_size=MAX_BATCH)[::-1]


def _consecutive(seconds: Sequence[float], batch_seconds: float) -> list[list[int]]:
    batches: list[list[int]] = []
    for index, duration in enumerate(seconds):
        last = batches[-1] if batches else []
        longest = max([duration, *(seconds[i] for i in last)])
        if not last or len(last) >= MAX_BATCH or longest * (len(last) + 1) > batch_seconds:
            batches.append([])
        batches[-1].append(index)
    return batches


def _read_ahead(
    upstream: Upstream, batches: Iterable[_Batch], workers: int
) -> Iterator[tuple[_Batch, list[Tensor | AudioError]]]:
    """Yields each batch with its waveforms; long ones come without."""
    pool = ThreadPoolExecutor(max(workers, 1))
    remaining = iter(batches)
    waiting: deque[tuple[_Batch, list[Future[Tensor | AudioError]]]] = deque()

    def submit(count: int) -> None:
        for batch in islice(remaining, count):
            wanted = [] if batch.long else batch.utterances
            waiting.append((batch, [pool.submit(_read, u, upstream.sample_rate) for u in wanted]))

    try:
        submit(1 + AHEAD)
        while waiting:
            batch, futures = waiting.popleft()
            yield batch, [f.result() for f in futures]
            submit(1)
    finally:
        pool.shutdown(cancel_futures=True)


def _read(utterance: Utterance, sample_rate: int) -> Tensor | AudioError:
    try:
        return read_audio(utterance.path, sample_rate=sample_rate, start=utterance.start, duration=utterance.duration)
    except AudioError as error:
        return error


def _usable(
    upstream: Upstream,
    batch: Sequence[Utterance],
    waveforms: Sequence[Tensor | AudioError],
    skip_bad: bool,
    bad: MutableMapping[str, str],
) -> list[tuple[Utterance, Tensor]]:
    """Keeps what was read and holds at least one frame; the rest is an error, or is left out."""
    kept: list[tuple[Utterance, Tensor]] = []
    for utterance, waveform in zip(batch, waveforms, strict=True):
        if isinstance(waveform, AudioError):
            leave_out(utterance, waveform, skip_bad, bad)
        elif not _holds_a_frame(upstream, waveform.numel()):
            error = _too_short(upstream, utterance, waveform.numel() / upstream.sample_rate)
            leave_out(utterance, error, skip_bad, bad)
        else:
            kept.append((utterance, waveform))
    return kept


def _holds_a_frame(upstream: Upstream, samples: int) -> bool:
    return int(upstream.output_lengths(torch.tensor([samples]))) >= 1


def _too_short(upstream: Upstream, utterance: Utterance, seconds: float) -> AudioError:
    reason = f"is {seconds:.3f} s long, shorter than one frame of '{upstream.name}': leave it out."
    return AudioError(f"{utterance.path} {reason}")


def _features(
    upstream: Upstream, batch: Sequence[tuple[Utterance, Tensor]], settings: _Settings
) -> Iterator[tuple[Utterance, HiddenStates]]:
    """Computes a batch, and leaves its rows to be copied when they are asked for."""
    lengths = torch.tensor([w.numel() for _, w in batch])
    waveform = torch.nn.utils.rnn.pad_sequence([w for _, w in batch], batch_first=True)  # (B, S)
    states, frames = forward_batch(upstream, waveform, lengths, settings.layers, settings.precision)
    return _rows([u for u, _ in batch], states, frames, len(upstream.hidden_sizes))


def _rows(
    utterances: Sequence[Utterance], states: Mapping[int, Tensor], frames: Sequence[int], count: int
) -> Iterator[tuple[Utterance, HiddenStates]]:
    for row, utterance in enumerate(utterances):
        # A copy: a slice would keep the whole batch alive, and could not take part in autograd.
        own = {
            layer: state[row, : frames[row]].to(torch.float32, copy=True) for layer, state in states.items()
        }  # (T, D)
        yield utterance, HiddenStates(own, count)


def _long_features(
    upstream: Upstream, utterance: Utterance, settings: _Settings
) -> list[tuple[Utterance, HiddenStates]]:
    pieces = extract_long(
        upstream, utterance, chunk=settings.chunk, context=settings.context, layers=settings.layers,
        precision=settings.precision,
    )  # fmt: skip
    try:
        return [(utterance, _joined(pieces, len(upstream.hidden_sizes)))]
    except AudioError as error:
        leave_out(utterance, error, settings.skip_bad, settings.bad)
        return []


def _joined(pieces: Iterable[HiddenStates], count: int) -> HiddenStates:
    """The pieces of an utterance as one of its `count` hidden states."""
    held = list(pieces)  # (T of the piece, D)
    return HiddenStates({k: torch.cat([piece[k] for piece in held]) for k in held[0].layers}, count)
