"""Batches of like duration, sized in seconds of audio: little padding, and even memory and time per step.

The order is a function of (seed, epoch) alone, so that a run goes on after an interruption where it was.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from speechssl.errors import SpeechsslError

JITTER = 0.1
"""Relative noise on the durations that are sorted by: neighbours change from epoch to epoch, padding stays small."""


def derive_seed(*parts: int | str) -> int:
    """Returns a 63-bit seed for anything named by `parts`, such as (seed, 'crop', epoch, utterance)."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def make_generator(*parts: int | str) -> torch.Generator:
    """Returns a CPU generator seeded by `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


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
    if not batch_seconds > 0:
        raise SpeechsslError(f"`batch_seconds` must be positive, but is {batch_seconds}.")
    seconds = torch.as_tensor(durations, dtype=torch.float64)
    keys = seconds
    if generator is not None:
        keys = seconds * (1 + JITTER * torch.rand(len(seconds), generator=generator, dtype=torch.float64))
    order: list[int] = torch.argsort(keys, stable=True).tolist()
    limit = max_size or len(order)
    batches: list[list[int]] = []
    longest = 0.0
    for index in order:
        longest = max(longest, durations[index])
        full = not batches or len(batches[-1]) >= limit or longest * (len(batches[-1]) + 1) > batch_seconds
        if full:
            batches.append([])
            longest = durations[index]
        batches[-1].append(index)
    if generator is not None:
        batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    return batches


@dataclass(frozen=True)
class Batch:
    """Which utterances one micro-batch holds, and where in the endless stream it stands."""

    number: int
    """Counts all micro-batches of the run, over all ranks and epochs."""
    epoch: int
    position: int
    """Within the epoch."""
    indices: tuple[int, ...]


class BatchStream:
    """The endless stream of micro-batches of a training run; rank r of W sees the numbers n with n % W == r."""

    def __init__(
        self,
        durations: Sequence[float],
        *,
        batch_seconds: float,
        seed: int,
        max_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """
        Args:
            durations: seconds of each utterance, after cropping.
            batch_seconds: see `bucket_batches`.
            seed: with the epoch, decides the order.
        """
        if not durations:
            raise SpeechsslError("There is no utterance to train on: check the split and the duration limits.")
        self.durations = list(durations)
        self.batch_seconds = batch_seconds
        self.max_size = max_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._start = {"epoch": 0, "position": 0, "number": 0, "consumed": 0}

    def of_all_ranks(self) -> "BatchStream":
        """The whole run's stream from its beginning, as one process alone would see it."""
        return BatchStream(self.durations, batch_seconds=self.batch_seconds, seed=self.seed, max_size=self.max_size)

    def epoch_batches(self, epoch: int) -> list[list[int]]:
        """All batches of one epoch, in order."""
        generator = make_generator(self.seed, "batches", epoch)
        return bucket_batches(
            self.durations, batch_seconds=self.batch_seconds, max_size=self.max_size, generator=generator
        )

    def __iter__(self) -> Iterator[Batch]:
        number, epoch, position = (self._start[k] for k in ("number", "epoch", "position"))
        while True:
            for indices in self.epoch_batches(epoch)[position:]:
                if number >= self._start["consumed"] and number % self.world_size == self.rank:
                    yield Batch(number, epoch, position, tuple(indices))
                number, position = number + 1, position + 1
            epoch, position = epoch + 1, 0

    def state_after(self, batch: Batch) -> dict[str, int]:
        """The state from which a stream goes on once every rank has consumed the round that `batch` belongs to."""
        consumed = (batch.number // self.world_size + 1) * self.world_size
        return {"epoch": batch.epoch, "position": batch.position, "number": batch.number, "consumed": consumed}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Makes the next iteration begin where `state_after` said."""
        self._start = {key: int(state[key]) for key in self._start}
