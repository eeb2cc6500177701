"""Batches of like duration, sized in seconds of audio: little padding, and even memory and time per step.

The order is a function of (seed, epoch) alone, so that a run goes on after an interruption where it was, without going
through what came before. All is kept in arrays: a million utterances take 16 bytes each.

U utterances, E draws of an epoch, N batches.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from speechssl.data.balance import Balance
from speechssl.data.seeds import derive_seed, make_generator
from speechssl.errors import SpeechsslError

__all__ = ["Batch", "BatchStream", "EpochPlan", "bucket_batches", "derive_seed", "make_generator"]

JITTER = 0.1
"""Relative noise on the durations that are sorted by: neighbours change from epoch to epoch, padding stays small."""
OPEN_SHARDS = 16
"""Shards of an archive that are read from at a time: few enough to stay in the system's file cache."""
CHUNK = 1 << 16


def bucket_batches(
    durations: Sequence[float],
    *,
    batch_seconds: float,
    max_size: int | None = None,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Groups utterances of like duration, so that each batch holds at most `batch_seconds` with its padding.

    Args:
        durations: seconds of each utterance.
        batch_seconds: longest duration in a batch times its size stays within this; a longer utterance is alone.
        max_size: most utterances per batch; None = no limit.
        generator: shuffles neighbours of like duration and the order of batches; None = ascending duration.

    Returns:
        indices into `durations`, every one exactly once.
    """
    seconds = np.asarray(durations, dtype=np.float64)
    plan = _bucket(seconds, batch_seconds=batch_seconds, max_size=max_size, generator=generator)
    return [plan.indices(number).tolist() for number in range(len(plan))]


@dataclass(frozen=True)
class EpochPlan:
    """The batches of one epoch, in order."""

    items: NDArray[np.int32]
    """Utterances, those of a batch side by side, (E,)."""
    starts: NDArray[np.int32]
    """Where each batch begins in `items`, (N,)."""
    ends: NDArray[np.int32]
    """And where it ends, (N,)."""
    passes: NDArray[np.int32] | None = None
    """How often each of `items` was drawn before, (E,); None = once in each epoch before this one."""

    def __len__(self) -> int:
        return len(self.starts)

    def indices(self, number: int) -> NDArray[np.int32]:
        """The utterances of a batch."""
        return self.items[self.starts[number] : self.ends[number]]

    def visits(self, number: int) -> tuple[int, ...]:
        """`passes` of a batch, or nothing."""
        return () if self.passes is None else tuple(self.passes[self.starts[number] : self.ends[number]].tolist())


def _bucket(
    seconds: NDArray[np.float64], *, batch_seconds: float, max_size: int | None, generator: torch.Generator | None
) -> EpochPlan:
    if not batch_seconds > 0:
        raise SpeechsslError(f"`batch_seconds` must be positive, but is {batch_seconds}.")
    keys = torch.from_numpy(seconds)
    if generator is not None:  # in place: there may be millions
        noise = torch.rand(len(seconds), generator=generator, dtype=torch.float64)
        keys = noise.mul_(JITTER).add_(1).mul_(keys)
    items = np.argsort(keys.numpy(), kind="stable").astype(np.int32)
    del keys
    bounds = _bounds(seconds, items, batch_seconds, max_size or len(items))
    order = np.arange(len(bounds) - 1)
    if generator is not None:
        order = torch.randperm(len(order), generator=generator).numpy()
    return EpochPlan(items, bounds[:-1][order], bounds[1:][order])


def _bounds(
    seconds: NDArray[np.float64], items: NDArray[np.int32], batch_seconds: float, limit: int
) -> NDArray[np.int32]:
    """Where batches begin in `items`, and the end of the last, (N + 1,)."""
    chunks: list[NDArray[np.int32]] = []
    size, longest = limit, 0.0  # so that the first item opens a batch
    for begin in range(0, len(items), CHUNK):
        starts = []
        for place, duration in enumerate(seconds[items[begin : begin + CHUNK]].tolist(), begin):
            longest = max(longest, duration)
            size += 1
            if size > limit or longest * size > batch_seconds:
                starts.append(place)
                size, longest = 1, duration
        chunks.append(np.array(starts, dtype=np.int32))
    return np.concatenate([*chunks, np.array([len(items)], dtype=np.int32)])


@dataclass(frozen=True)
class Batch:
    """Which utterances one micro-batch holds, and where in the endless stream it stands."""

    number: int
    """Counts all micro-batches of the run, over all ranks and epochs."""
    epoch: int
    position: int
    """Within the epoch."""
    indices: tuple[int, ...]
    passes: tuple[int, ...] = ()
    """How often each utterance was drawn before, where that is not `epoch`: for random crops."""

    def visit(self, place: int) -> int:
        """How often the utterance at `place` was drawn before."""
        return self.passes[place] if self.passes else self.epoch


class BatchStream:
    """The endless stream of micro-batches of a training run; rank r of W sees the numbers n with n % W == r.

    An epoch goes once through all utterances or, with `balance`, draws as much audio as they hold.
    """

    def __init__(
        self,
        durations: Sequence[float] | NDArray[np.float64],
        *,
        batch_seconds: float,
        seed: int,
        max_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        shards: NDArray[np.int32] | None = None,
        balance: Balance | None = None,
    ) -> None:
        """
        Args:
            durations: seconds of each utterance, after cropping, (U,).
            batch_seconds: see `bucket_batches`.
            seed: with the epoch, decides the order.
            shards: archive that each utterance is in, (U,): batches are made of `OPEN_SHARDS` random ones at a time,
                so that a disk reads in long runs. None = of all utterances.
            balance: what an epoch draws; None = every utterance once.
        """
        if len(durations) == 0:
            raise SpeechsslError("There is no utterance to train on: check the split and the duration limits.")
        self.durations = np.asarray(durations, dtype=np.float64)
        self.batch_seconds = batch_seconds
        self.max_size = max_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shards = shards
        self.balance = balance
        self._start = {"epoch": 0, "position": 0, "number": 0, "consumed": 0}

    def of_all_ranks(self) -> "BatchStream":
        """The whole run's stream from its beginning, as one process alone would see it."""
        return BatchStream(
            self.durations,
            batch_seconds=self.batch_seconds,
            seed=self.seed,
            max_size=self.max_size,
            shards=self.shards,
            balance=self.balance,
        )

    def plan(self, epoch: int) -> EpochPlan:
        """All batches of one epoch."""
        drawn = None if self.balance is None else self.balance.draw(epoch)
        if drawn is None and self.shards is None:
            return self._plan(self.durations, "batches", epoch)
        items = np.arange(len(self.durations), dtype=np.int32) if drawn is None else drawn[0]
        groups = [np.arange(len(items))] if self.shards is None else self._groups(self.shards, items, epoch)
        plans = []
        for number, group in enumerate(groups):
            plan = self._plan(self.durations[items[group]], "batches", epoch, number)
            plans.append(EpochPlan(group[plan.items].astype(np.int32), plan.starts, plan.ends))
        sizes = np.cumsum([0, *(len(p.items) for p in plans)]).astype(np.int32)
        places = np.concatenate([p.items for p in plans])
        return EpochPlan(
            items[places],
            np.concatenate([p.starts + size for p, size in zip(plans, sizes[:-1], strict=True)]),
            np.concatenate([p.ends + size for p, size in zip(plans, sizes[:-1], strict=True)]),
            None if drawn is None else drawn[1][places],
        )

    def _plan(self, durations: NDArray[np.float64], *name: int | str) -> EpochPlan:
        generator = make_generator(self.seed, *name)
        return _bucket(durations, batch_seconds=self.batch_seconds, max_size=self.max_size, generator=generator)

    def _groups(self, shards: NDArray[np.int32], items: NDArray[np.int32], epoch: int) -> list[NDArray[np.int64]]:
        """Places in `items`, by the random group that their shard is in."""
        generator = make_generator(self.seed, "shards", epoch)
        place = torch.randperm(int(shards.max()) + 1, generator=generator).numpy() // OPEN_SHARDS
        group = place[shards[items]]
        order = np.argsort(group, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
        return [part for part in parts if len(part)]

    def __iter__(self) -> Iterator[Batch]:
        number, epoch, position = (self._start[k] for k in ("number", "epoch", "position"))
        while True:
            plan = self.plan(epoch)
            for place in range(position, len(plan)):
                if number >= self._start["consumed"] and number % self.world_size == self.rank:
                    yield Batch(number, epoch, place, tuple(plan.indices(place).tolist()), plan.visits(place))
                number += 1
            epoch, position = epoch + 1, 0

    def state_after(self, batch: Batch) -> dict[str, int]:
        """The state from which a stream goes on once every rank has consumed the round that `batch` belongs to; the
        number of ranks may be another one then."""
        consumed = (batch.number // self.world_size + 1) * self.world_size
        return {"epoch": batch.epoch, "position": batch.position, "number": batch.number, "consumed": consumed}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Makes the next iteration begin where `state_after` said."""
        self._start = {key: int(state[key]) for key in self._start}
