"""Span masks: fairseq's semantics, vectorised."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechssl.data.batching import make_generator
from speechssl.errors import SpeechsslError
from speechssl.masking.span import sample_span_mask


def _fairseq_mask(size: int, prob: float, span: int, min_spans: int, rng: np.random.Generator) -> np.ndarray:
    """One row of fairseq's compute_mask_indices (static, overlapping), step by step."""
    count = max(min_spans, int(prob * size / span + rng.random()))
    least = size - count - 1 if size - span <= count else span
    starts = rng.choice(size - least, count, replace=False)
    mask = np.zeros(size, dtype=bool)
    for start in starts:
        mask[start : start + span] = True
    return mask


@pytest.mark.parametrize(("prob", "expected"), [(0.65, 0.492), (0.80, 0.565)])
def test_coverage_at_780_frames_is_that_of_fairseq(prob: float, expected: float) -> None:
    lengths = torch.full((600,), 780)
    mask = sample_span_mask(lengths, prob=prob, span=10, min_spans=2, generator=make_generator(0))
    assert mask.float().mean().item() == pytest.approx(expected, abs=0.004)


@pytest.mark.parametrize("size", [12, 24, 60, 300])
def test_coverage_per_position_agrees_with_a_slow_loop(size: int) -> None:
    draws = 4000
    rng = np.random.default_rng(0)
    expected = np.mean([_fairseq_mask(size, 0.8, 10, 2, rng) for _ in range(draws)], axis=0)
    lengths = torch.full((draws,), size)
    mask = sample_span_mask(lengths, prob=0.8, span=10, min_spans=2, generator=make_generator(1))
    np.testing.assert_allclose(mask.float().mean(dim=0).numpy(), expected, atol=0.05)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=8), st.floats(0, 1), st.integers(1, 12), st.booleans())
def test_no_frame_beyond_the_length_is_hidden(lengths: list[int], prob: float, span: int, same: bool) -> None:
    frames = torch.tensor(lengths)
    mask = sample_span_mask(
        frames, prob=prob, span=span, min_spans=2, generator=make_generator(2), require_same_masks=same
    )
    assert mask.shape == (len(lengths), max(lengths))
    for row, length in zip(mask, lengths, strict=True):
        assert not row[length:].any()
        assert row[:length].any()
    if same:
        assert len(set(mask.sum(dim=1).tolist())) == 1


def test_starts_are_drawn_without_replacement_and_spans_may_overlap() -> None:
    lengths = torch.full((200,), 100)
    mask = sample_span_mask(lengths, prob=0.3, span=1, min_spans=0, generator=make_generator(3))
    assert set(mask.sum(dim=1).tolist()) == {30}  # 0.3 * 100 + u rounds down to 30; no start twice
    wide = sample_span_mask(lengths, prob=0.5, span=10, min_spans=2, generator=make_generator(3))
    assert len(set(wide.sum(dim=1).tolist())) > 5


def test_the_same_generator_gives_the_same_mask_and_another_does_not() -> None:
    lengths = torch.tensor([50, 80])
    masks = [
        sample_span_mask(lengths, prob=0.8, span=10, min_spans=2, generator=make_generator(s), max_length=90)
        for s in (5, 5, 6)
    ]
    assert masks[0].shape == (2, 90)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_bad_arguments_are_named() -> None:
    with pytest.raises(SpeechsslError, match="prob"):
        sample_span_mask(torch.tensor([5]), prob=1.5, span=10, min_spans=2, generator=make_generator(0))
