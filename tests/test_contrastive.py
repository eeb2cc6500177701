"""The contrast of hidden frames against loops written from the paper."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.data.batching import make_generator
from speechssl.loss.contrastive import HiddenFrames, contrastive_loss, sample_distractors

MASK = torch.rand(4, 40, generator=make_generator("mask")) < torch.tensor([0.5, 0.9, 0.3, 0.1])[:, None]


def frames_of(mask: Tensor) -> tuple[HiddenFrames, Tensor, Tensor, Tensor]:
    """Hidden frames with a context, targets and codes of few entries, so that some are equal."""
    frames = HiddenFrames.of(mask)
    size = int(mask.sum())
    generator = make_generator("frames")
    codes = torch.randint(0, 3, (size, 2), generator=generator)
    book = torch.randn(3, 3, 6, generator=generator)
    context = torch.randn(size, 6, generator=generator, requires_grad=True)
    return frames, context, book[codes[:, 0], codes[:, 1]].requires_grad_(), codes


def slow_loss(
    mask: Tensor, context: Tensor, targets: Tensor, distractors: Tensor, *, clusters: Tensor | None, scale: float
) -> tuple[Tensor, int]:
    """Paper, eq. 3: over one frame and one distractor after the other; equal targets are left out."""
    row = mask.nonzero()[:, 0]
    first = [int((row < r).sum()) for r in range(len(mask))]
    loss, correct = torch.zeros(()), 0
    for i in range(len(context)):
        scores = [F.cosine_similarity(context[i], targets[i], dim=0) / 0.1]
        for rank in distractors[i].tolist():
            j = first[int(row[i])] + rank
            if not torch.equal(targets[i], targets[j]):
                score = F.cosine_similarity(context[i], targets[j], dim=0) / 0.1
                alike = clusters is not None and clusters[i] == clusters[j]
                scores.append(scale * score if alike else score)
        logits = torch.stack(scores)
        loss = loss + F.cross_entropy(logits[None], torch.zeros(1, dtype=torch.int64))
        correct += int(logits.argmax() == 0)
    return loss, correct


@pytest.mark.parametrize("clustered", [False, True])
def test_the_loss_is_that_of_one_frame_after_the_other(clustered: bool) -> None:
    frames, context, targets, codes = frames_of(MASK)
    distractors = sample_distractors(frames, 20, generator=make_generator(1))
    clusters = torch.randint(0, 4, (len(codes),), generator=make_generator(2)) if clustered else None
    loss, correct = contrastive_loss(
        context, targets, codes, frames, distractors, temperature=0.1, clusters=clusters, cluster_scale=0.3
    )
    expected, right = slow_loss(MASK, context, targets, distractors, clusters=clusters, scale=0.3)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    assert int(correct) == right
    found, wanted = (torch.autograd.grad(x, [context, targets]) for x in (loss, expected))
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_distractors_are_the_other_hidden_frames_of_the_utterance_alike_often() -> None:
    frames = HiddenFrames.of(MASK)
    drawn = sample_distractors(frames, 5000, generator=make_generator(3))
    own = frames.slot % frames.most
    size = frames.counts.repeat_interleave(frames.counts)
    assert not bool((drawn == own[:, None]).any())
    assert bool((drawn >= 0).all()) and bool((drawn < size[:, None]).all())
    for row, rank, count in zip(drawn, own.tolist(), size.tolist(), strict=True):
        frequency = torch.bincount(row, minlength=count) / 5000 * (count - 1)
        others = torch.arange(count) != rank
        assert float((frequency[others] - 1).abs().max()) < 0.5
    assert torch.equal(drawn, sample_distractors(frames, 5000, generator=make_generator(3)))


def test_a_distractor_of_equal_codes_counts_as_if_it_were_not_there() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    frames = HiddenFrames.of(mask)
    context, targets = torch.eye(3), torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]])
    codes = torch.tensor([[4, 2], [4, 2], [4, 1]])
    distractors = torch.tensor([[1, 2], [0, 2], [0, 1]])
    loss, _ = contrastive_loss(context, targets, codes, frames, distractors, temperature=0.1)
    # Frame 0 tells 10 from 0, frame 1 tells 0 from 10, frame 2 tells 0 from twice 0.
    one = torch.tensor
    expected = -F.log_softmax(one([10.0, 0]), 0)[0] - F.log_softmax(one([0.0, 10]), 0)[0] + torch.log(one(3.0))
    torch.testing.assert_close(loss, expected)


def test_a_single_hidden_frame_has_nothing_to_be_told_from() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    frames, context, targets, codes = frames_of(mask)
    codes = torch.tensor([[0, 0], [0, 1], [1, 1]])
    distractors = sample_distractors(frames, 7, generator=make_generator(1))
    loss, _ = contrastive_loss(context, targets, codes, frames, distractors, temperature=0.1)
    loss.backward()
    assert bool(torch.isfinite(loss)) and not bool(context.grad[0].any())  # type: ignore[index]


def test_selecting_spreading_and_gathering_belong_together() -> None:
    frames = HiddenFrames.of(MASK)
    x = torch.randn(4, 40, 3, generator=make_generator(4))
    assert torch.equal(frames.select(x), x[MASK])
    spread = frames.spread(frames.select(x))
    assert spread.shape == (4, int(MASK.sum(dim=1).max()), 3)
    assert torch.equal(frames.gather(spread), x[MASK])
    assert torch.equal(spread[3, int(MASK[3].sum()) :], torch.zeros_like(spread[3, int(MASK[3].sum()) :]))
