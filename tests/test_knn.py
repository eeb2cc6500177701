"""Nearest-neighbour conversion against a slow loop and scikit-learn."""

import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from downstreams.voice_conversion import knn
from speechssl import neighbours
from speechssl.errors import SpeechsslError
from speechssl.neighbours import ReferencePool


def _frames(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_neighbours_are_those_of_scikit_learn() -> None:
    source, reference = _frames(37, 16, 0), _frames(101, 16, 1)
    theirs = NearestNeighbors(n_neighbors=4, metric="cosine").fit(reference.numpy())
    expected = theirs.kneighbors(source.numpy(), return_distance=False)
    assert neighbours.nearest(source, reference, k=4).tolist() == expected.tolist()


def test_conversion_is_the_uniform_mean_that_a_slow_loop_finds() -> None:
    source, reference, values = _frames(11, 8, 2), _frames(29, 8, 3), _frames(29, 5, 4)
    slow = []
    for frame in source:
        distances = [1 - float(torch.cosine_similarity(frame, other, dim=0)) for other in reference]
        best = sorted(range(29), key=distances.__getitem__)[:3]
        slow.append(sum(values[i] for i in best) / 3)
    found = knn.convert(source, reference, k=3, values=values)
    torch.testing.assert_close(found, torch.stack(slow), atol=1e-6, rtol=0)


def test_scale_of_a_frame_does_not_matter() -> None:
    source, reference = _frames(20, 8, 7), _frames(40, 8, 8)
    assert torch.equal(neighbours.nearest(3.5 * source, reference, k=4), neighbours.nearest(source, reference, k=4))


def test_excluded_frames_are_never_found() -> None:
    frames = _frames(30, 8, 9)
    own = torch.arange(30) < 10
    assert int(neighbours.nearest(frames[:10], frames, k=4, exclude=own).min()) >= 10
    assert torch.equal(neighbours.nearest(frames[:10], frames, k=1)[:, 0], torch.arange(10))  # else each finds itself


def test_too_little_reference_is_an_error_that_says_so() -> None:
    with pytest.raises(SpeechsslError, match="fewer than k = 4"):
        knn.convert(_frames(5, 8, 0), _frames(3, 8, 1), k=4)


def test_prematching_uses_only_other_utterances_of_the_same_speaker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "MIN_POOL", 8)
    features = _frames(4 * 20, 6, 10).view(4, 20, 6)
    lengths = torch.tensor([20, 12, 20, 15])
    found = knn.prematch(features, lengths, ["a", "a", "b", "a"], k=4, space=features)
    pool = torch.cat([features[1, :12], features[3, :15]])
    torch.testing.assert_close(found[0], knn.convert(features[0], pool, k=4), atol=1e-6, rtol=0)
    assert torch.equal(found[2], features[2])  # b says nothing else
    assert torch.equal(found[1, 12:], features[1, 12:])  # padding


def test_gradients_reach_the_averaged_frames_but_not_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "MIN_POOL", 4)
    features = _frames(2 * 10, 6, 11).view(2, 10, 6).requires_grad_()
    found = knn.prematch(features, torch.tensor([10, 10]), ["a", "a"], k=2, space=features.detach())
    found[0].sum().backward()
    assert features.grad is not None
    assert float(features.grad[0].abs().sum()) == 0.0  # its own frames are replaced
    assert float(features.grad[1].sum()) == pytest.approx(60.0, abs=1e-4)  # 10 frames of 6 dimensions, 2 x 1/2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_pool_converts_as_its_frames_do_and_gradients_reach_these(dtype: torch.dtype) -> None:
    source, reference = _frames(21, 16, 12), _frames(60, 16, 13).to(dtype).requires_grad_()
    found = knn.convert(source, ReferencePool(reference), k=4)
    chosen = neighbours.nearest(source, reference.float(), k=4)
    torch.testing.assert_close(found.float(), reference.float()[chosen].mean(dim=1), atol=1e-2, rtol=0)
    found.float().sum().backward()
    assert reference.grad is not None
    assert float(reference.grad.float().sum()) == pytest.approx(21 * 16, rel=1e-2)
