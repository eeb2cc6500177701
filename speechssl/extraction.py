"""Features of audio files: `extract` reads ahead in threads, batches by duration, and yields one utterance at a time.

B batch, S samples, T frames, D width. Features come out as float32 on the CPU, trimmed to the valid frames.
"""

import glob
import logging
import os
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from speechssl.audio import SUFFIXES, audio_info, read_audio
from speechssl.data.batching import bucket_batches
from speechssl.data.corpus import open_corpus, read_manifest
from speechssl.errors import AudioError, ManifestError
from speechssl.progress import progress
from speechssl.types import HiddenStates, Utterance
from speechssl.upstream import Upstream

logger = logging.getLogger(__name__)

Items = str | Path | Utterance | Iterable[str | Path | Utterance]
"""Audio files, folders (searched below, or a prepared corpus), globs, Lhotse cut manifests, or utterances."""
Precision = Literal["float32", "bf16"]
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
    batches = _consecutive(seconds, batch_seconds) if in_order else _longest_first(seconds, batch_seconds)
    training = upstream.training
    upstream.eval()
    try:
        for batch, waveforms in _read_ahead(upstream, [[utterances[i] for i in b] for b in batches], workers):
            kept = _usable(upstream, batch, waveforms, skip_bad, failures)
            if kept:
                yield from _features(upstream, kept, layers, precision)
    finally:
        upstream.train(training)
    if failures:
        logger.warning("%d of %d utterances were left out.", len(failures), len(failures) + len(durations))


def resolve_items(items: Items) -> list[Utterance]:
    """Returns the utterances that `items` stand for, in order, each once.

    A file's id is its name without suffix, below a folder its path within the folder; files of one name in different
    folders get their path instead.

    Raises:
        AudioError: a folder or glob without audio files.
        ManifestError: a manifest that can't be read, or different utterances with one id.
    """
    found: list[Utterance] = []
    for item in [items] if isinstance(items, str | Path | Utterance) else items:
        found.extend([item] if isinstance(item, Utterance) else _resolve_path(Path(item)))
    unique = list({(u.id, u.path, u.start, u.duration): u for u in found}.values())
    counts = Counter(u.id for u in unique)
    unique = [_named_by_path(u) if counts[u.id] > 1 else u for u in unique]
    for name, count in Counter(u.id for u in unique).items():
        if count > 1:
            raise ManifestError(f"{count} different utterances have the id '{name}': give each an id of its own.")
    return unique


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
                _fail(utterance, outcome, skip_bad, bad)
            else:
                durations[utterance.id] = outcome
    return durations


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
                _fail(utterance, reason, True, bad)
    return bad


def _wrong(utterance: Utterance) -> AudioError | None:
    """Why an utterance can't be used; its audio is not kept."""
    try:
        rate = audio_info(utterance.path).sample_rate
    except AudioError as error:
        return error
    outcome = _read(utterance, rate)
    return outcome if isinstance(outcome, AudioError) else None


def _resolve_path(path: Path) -> list[Utterance]:
    if path.is_dir():
        return _resolve_folder(path)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        root = path.absolute().parent.parent
        return read_manifest(path, root=root if (root / "corpus.json").is_file() else None)
    if glob.has_magic(str(path)) and not path.exists():
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  Path.glob takes no absolute pattern
        if not matches:
            raise AudioError(f"No file matches {path}: check the pattern.")
        return [u for match in matches for u in _resolve_path(Path(match))]
    return [Utterance(path.stem, str(path))]


def _resolve_folder(folder: Path) -> list[Utterance]:
    if (folder / "corpus.json").is_file():
        corpus = open_corpus(folder)
        return [u for split in ("train", "dev", "test") if split in corpus.splits() for u in corpus.utterances(split)]
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise AudioError(f"The folder {folder} holds no audio files: name one that does.")
    return [Utterance(p.relative_to(folder).with_suffix("").as_posix(), str(p)) for p in files]


def _named_by_path(utterance: Utterance) -> Utterance:
    path = Path(utterance.path)
    if path.stem != Path(utterance.id).name:
        return utterance  # named by a manifest, not by its file
    return replace(utterance, id=os.path.relpath(path).replace(os.sep, "/").replace("../", ""))


def _duration(utterance: Utterance) -> float | AudioError:
    try:
        if utterance.duration is not None:
            return utterance.duration
        return audio_info(utterance.path).duration - utterance.start
    except AudioError as error:
        return error


def _fail(utterance: Utterance, error: AudioError, skip_bad: bool, bad: MutableMapping[str, str] | None) -> None:
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
    upstream: Upstream, batches: Iterable[list[Utterance]], workers: int
) -> Iterator[tuple[list[Utterance], list[Tensor | AudioError]]]:
    pool = ThreadPoolExecutor(max(workers, 1))
    remaining = iter(batches)
    waiting: deque[tuple[list[Utterance], list[Future[Tensor | AudioError]]]] = deque()

    def submit(count: int) -> None:
        for batch in islice(remaining, count):
            waiting.append((batch, [pool.submit(_read, u, upstream.sample_rate) for u in batch]))

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
            _fail(utterance, waveform, skip_bad, bad)
        elif int(upstream.output_lengths(torch.tensor([waveform.numel()]))) < 1:
            seconds = waveform.numel() / upstream.sample_rate
            reason = f"is {seconds:.3f} s long, shorter than one frame of '{upstream.name}': leave it out"
            _fail(utterance, AudioError(f"{utterance.path} {reason}."), skip_bad, bad)
        else:
            kept.append((utterance, waveform))
    return kept


def _features(
    upstream: Upstream, batch: Sequence[tuple[Utterance, Tensor]], layers: Sequence[int] | None, precision: Precision
) -> Iterator[tuple[Utterance, HiddenStates]]:
    lengths = torch.tensor([w.numel() for _, w in batch])
    waveform = torch.nn.utils.rnn.pad_sequence([w for _, w in batch], batch_first=True)  # (B, S)
    states, frames = _forward(upstream, waveform, lengths, layers, precision)
    for row, (utterance, _) in enumerate(batch):
        # A copy: a slice would keep the whole batch alive, and could not take part in autograd.
        own = {layer: state[row, : frames[row]].float().clone() for layer, state in states.items()}  # (T, D)
        yield utterance, HiddenStates(own, len(upstream.hidden_sizes))


@torch.inference_mode()
def _forward(
    upstream: Upstream, waveform: Tensor, lengths: Tensor, layers: Sequence[int] | None, precision: Precision
) -> tuple[dict[int, Tensor], list[int]]:
    """Returns layer -> (B, T, D) on the CPU, and the valid frames per utterance."""
    tensors = [*upstream.parameters(), *upstream.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        out = upstream(waveform.to(device), lengths.to(device), layers=layers)
    states = {k: out.hidden_states[k].cpu() for k in out.hidden_states.layers}
    return states, out.lengths.tolist()
