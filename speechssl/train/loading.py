"""Reads micro-batches ahead of the computation: in threads from memory, in processes from files."""

import logging
import signal
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Any, cast

from torch.utils.data import DataLoader, Dataset

from speechssl.data.batching import Batch
from speechssl.errors import SpeechsslError
from speechssl.train.data import PretrainDataset, TrainBatch

logger = logging.getLogger(__name__)
AHEAD = 4
"""Micro-batches that are read ahead, by each process."""


def load_batches(
    dataset: PretrainDataset, stream: Iterable[Batch], *, num_workers: int, pin: bool = False
) -> Generator[TrainBatch, None, None]:
    """Yields the micro-batches of `stream` in order; the log names what can't be read.

    Args:
        num_workers: processes, where the corpus is not kept in memory.
        pin: whether they go to memory that a GPU fetches from by itself.

    Raises:
        SpeechsslError: more audio can't be read than `dataset.max_bad` allows, or a process was killed.
    """
    count = _BadAudioCount(dataset)
    load = _in_threads if dataset.cached or num_workers == 0 else _in_processes
    with closing(load(dataset, stream, num_workers, pin)) as batches:
        for batch in batches:
            count.see(batch)
            yield batch


class _BadAudioCount:
    def __init__(self, dataset: PretrainDataset) -> None:
        self._dataset = dataset
        self._seen: set[int] = set()

    def see(self, batch: TrainBatch) -> None:
        for bad in batch.bad:
            if bad.item in self._seen:
                continue
            self._seen.add(bad.item)
            name, other = (self._dataset.index.name(int(self._dataset.rows[n])) for n in (bad.item, bad.substitute))
            count, total = len(self._seen), len(self._dataset)
            logger.warning(
                "'%s' takes the place of '%s', number %d that can't be read: %s", other, name, count, bad.reason
            )
            if count > self._dataset.max_bad * total:
                raise SpeechsslError(
                    f"{count} of {total} utterances can't be read, and max_bad={self._dataset.max_bad:g} of them may; "
                    f"the last is '{name}': {bad.reason} Mend them, leave them out, or raise `train.max_bad`."
                )


def _in_threads(
    dataset: PretrainDataset, stream: Iterable[Batch], num_workers: int, pin: bool
) -> Generator[TrainBatch, None, None]:
    def load(batch: Batch) -> TrainBatch:
        return dataset[batch].pin_memory() if pin else dataset[batch]

    batches = iter(stream)
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        pending = deque(pool.submit(load, b) for b in islice(batches, AHEAD))
        try:
            while pending:
                item = pending.popleft().result()
                pending.extend(pool.submit(load, b) for b in islice(batches, 1))
                yield item
        finally:
            for future in pending:
                future.cancel()


class _Telling(Dataset[Any]):
    """Returns what went wrong: raised in another process, it would arrive as a traceback."""

    def __init__(self, dataset: PretrainDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, batch: Batch) -> TrainBatch | SpeechsslError:
        try:
            return self._dataset[batch]
        except SpeechsslError as error:
            return error


def _in_processes(
    dataset: PretrainDataset, stream: Iterable[Batch], num_workers: int, pin: bool
) -> Generator[TrainBatch, None, None]:
    loader: DataLoader[TrainBatch | SpeechsslError] = DataLoader(
        _Telling(dataset),
        sampler=cast(Any, stream),
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context="fork" if sys.platform == "linux" else None,  # labels and cache are shared, not sent
        prefetch_factor=AHEAD,
        pin_memory=pin,
        worker_init_fn=_leave_signals,
    )
    try:
        for item in loader:
            if isinstance(item, SpeechsslError):
                raise item
            yield item
    except (RuntimeError, OSError, EOFError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise  # something else, or a bug in the process, which has its traceback
        reason = _await_signal() or str(error)
        raise SpeechsslError(
            f"A process that reads audio has died ({reason.splitlines()[0].strip(' .')}), perhaps for lack of memory: "
            "lower `train.num_workers`; the last checkpoint is from before."
        ) from error


def _await_signal() -> str:
    """How a process died that was just handing a batch over: torch says it, as an error, when the signal comes."""
    try:
        time.sleep(0.5)
    except RuntimeError as error:
        return str(error)
    return ""


def _leave_signals(_worker: int) -> None:
    """Schedulers and terminals signal all processes of a group: what to do is for the one that trains to decide."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
