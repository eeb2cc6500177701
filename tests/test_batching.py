"""Duration buckets and the endless, resumable stream of batches."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechssl.data.batching import BatchStream, bucket_batches, make_generator
from speechssl.errors import SpeechsslError


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.1, 30.0), max_size=80), st.floats(1.0, 60.0), st.booleans())
def test_every_utterance_is_in_exactly_one_batch_and_no_batch_is_too_long(
    durations: list[float], batch_seconds: float, shuffle: bool
) -> None:
    generator = make_generator(0) if shuffle else None
    batches = bucket_batches(durations, batch_seconds=batch_seconds, generator=generator)
    assert sorted(itertools.chain(*batches)) == list(range(len(durations)))
    for batch in batches:
        assert len(batch) == 1 or max(durations[i] for i in batch) * len(batch) <= batch_seconds


def test_padding_is_a_small_part_of_shuffled_batches() -> None:
    durations = (0.5 + 10 * torch.rand(3000, generator=make_generator(1))).tolist()
    batches = bucket_batches(durations, batch_seconds=60.0, generator=make_generator(2))
    padded = sum(max(durations[i] for i in b) * len(b) for b in batches)
    assert sum(durations) / padded > 0.93
    assert all(len(b) <= 4 for b in bucket_batches(durations, batch_seconds=60.0, max_size=4))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    durations = torch.rand(200, generator=make_generator(3)).add(0.1).tolist()
    stream = BatchStream(durations, batch_seconds=3.0, seed=7)
    again = BatchStream(durations, batch_seconds=3.0, seed=7)
    assert _batches(stream, 4) == _batches(again, 4)
    assert _batches(stream, 4) != _batches(stream, 5)
    assert _batches(stream, 4) != _batches(BatchStream(durations, batch_seconds=3.0, seed=8), 4)


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_resumed_stream_goes_on_with_the_next_batch_of_every_rank(world_size: int) -> None:
    durations = torch.rand(50, generator=make_generator(3)).add(0.1).tolist()

    def stream(rank: int) -> BatchStream:
        return BatchStream(durations, batch_seconds=3.0, seed=7, rank=rank, world_size=world_size)

    rounds = 30  # more than one epoch
    whole = [list(itertools.islice(stream(r), rounds)) for r in range(world_size)]
    state = stream(0).state_after(whole[0][16])
    for rank in range(world_size):
        resumed = stream(rank)
        resumed.load_state(state)
        assert list(itertools.islice(resumed, rounds - 17)) == whole[rank][17:]


def test_ranks_share_the_stream_without_overlap() -> None:
    durations = torch.rand(50, generator=make_generator(3)).add(0.1).tolist()
    one = list(itertools.islice(BatchStream(durations, batch_seconds=3.0, seed=7), 20))
    two = [
        list(itertools.islice(BatchStream(durations, batch_seconds=3.0, seed=7, rank=r, world_size=2), 10))
        for r in range(2)
    ]
    assert one == [b for pair in zip(*two, strict=True) for b in pair]


def test_bad_arguments_are_named() -> None:
    with pytest.raises(SpeechsslError, match="batch_seconds"):
        bucket_batches([1.0], batch_seconds=0.0)
    with pytest.raises(SpeechsslError, match="no utterance"):
        BatchStream([], batch_seconds=1.0, seed=0)


def _batches(stream: BatchStream, epoch: int) -> list[list[int]]:
    plan = stream.plan(epoch)
    return [plan.indices(n).tolist() for n in range(len(plan))]
