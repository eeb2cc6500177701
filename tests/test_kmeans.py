"""k-means: against scikit-learn, deterministic, robust."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as SklearnKMeans
from torch import Tensor

from speechssl.data.batching import make_generator
from speechssl.errors import SpeechsslError
from speechssl.targets.kmeans import KMeans, Scores, load_kmeans, nearest
from speechssl.targets.lloyd import (
    KMeansConfig,
    fit_kmeans,
    initial_centroids,
    lloyd_pass,
    lloyd_stream,
    minibatch_pass,
)


def _frames(count: int = 6000, centres: int = 60) -> Tensor:
    generator = make_generator(0)
    means = 3 * torch.randn(centres, 12, generator=generator)
    noise = torch.randn(count, 12, generator=generator)
    return means[torch.randint(centres, (count,), generator=generator)] + noise


def test_inertia_is_that_of_scikit_learn() -> None:
    features = _frames()
    _, inertia = fit_kmeans(features, KMeansConfig(clusters=40), generator=make_generator(1))
    reference = SklearnKMeans(40, n_init=3, random_state=0).fit(features.numpy()).inertia_ / len(features)
    assert inertia < 1.02 * reference


def test_one_lloyd_pass_is_that_of_scikit_learn() -> None:
    features = _frames()
    start = features[:20].clone()
    reference = SklearnKMeans(20, init=start.numpy(), n_init=1, max_iter=1, algorithm="lloyd").fit(features.numpy())
    moved = lloyd_pass(features, start, generator=make_generator(0))
    np.testing.assert_allclose(moved.numpy(), reference.cluster_centers_, atol=1e-4)


def test_frames_go_to_the_nearest_centroid() -> None:
    features, centroids = _frames(300), _frames(17)
    distance = torch.cdist(features.double(), centroids.double()).square()
    codes, squared = nearest(features, centroids)
    assert torch.equal(codes, distance.argmin(dim=1))
    torch.testing.assert_close(squared.double(), distance.min(dim=1).values, rtol=1e-4, atol=1e-3)


def test_equal_generators_give_equal_centroids() -> None:
    features = _frames()
    fits = [
        fit_kmeans(features, KMeansConfig(clusters=30), generator=make_generator(s))[0].centroids for s in (4, 4, 5)
    ]
    assert torch.equal(fits[0], fits[1])
    assert not torch.equal(fits[0], fits[2])


def test_wide_frames_are_seeded_in_a_projection_and_end_as_well() -> None:
    lift = torch.randn(12, 400, generator=make_generator(5)) / 400**0.5
    features = _frames() @ lift + 100.0  # far from the origin, as hidden states with an outlying dimension are
    _, inertia = fit_kmeans(features, KMeansConfig(clusters=40), generator=make_generator(1))
    reference = SklearnKMeans(40, n_init=3, random_state=0).fit(features.double().numpy()).inertia_ / len(features)
    assert inertia < 1.04 * reference


def test_a_stream_in_chunks_moves_the_centroids_as_one_tensor_does() -> None:
    features = _frames()
    start = features[:20].clone()
    whole = lloyd_pass(features, start, generator=make_generator(0))
    chunks = lloyd_stream(features.split(777), start, generator=make_generator(0))
    torch.testing.assert_close(whole, chunks, rtol=0, atol=1e-5)


def test_mini_batches_move_each_centroid_to_the_mean_of_all_it_has_seen() -> None:
    features = _frames(900)
    centroids, counts = features[:7].clone(), torch.zeros(7)
    expected, seen = centroids.clone().double(), [0] * 7
    for chunk in features.split(250):
        codes = torch.cdist(chunk.double(), expected).argmin(dim=1)
        for frame, code in zip(chunk.double(), codes.tolist(), strict=True):
            seen[code] += 1
            expected[code] += (frame - expected[code]) / seen[code]
    moved, total = minibatch_pass(features.split(250), centroids, counts)
    torch.testing.assert_close(moved.double(), expected, rtol=0, atol=1e-4)
    assert total.tolist() == seen


def test_bfloat16_compares_nearly_as_well() -> None:
    features, centroids = _frames(2000) + 50.0, _frames(40) + 50.0
    exact, _ = nearest(features, centroids)
    codes, distance = Scores(centroids, dtype=torch.bfloat16)(features)
    assert (codes == exact).float().mean() > 0.95
    chosen = (features - centroids[codes]).square().sum(dim=1)
    torch.testing.assert_close(distance, chosen, rtol=0.05, atol=1.0)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    fit_kmeans(_frames(500), KMeansConfig(clusters=9), generator=make_generator(0))
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_centroid_without_frames_restarts() -> None:
    features = _frames()
    start = torch.cat([features[:5], torch.full((3, 12), 1e4)])
    moved = lloyd_pass(features, start, generator=make_generator(0))
    assert moved.abs().max() < 100
    assert torch.bincount(nearest(features, moved)[0], minlength=8).min() > 0


def test_seeding_spreads_the_centroids() -> None:
    features = _frames()
    seeded = nearest(features, initial_centroids(features, 60, generator=make_generator(2)))[1].mean()
    drawn = nearest(features, features[torch.randperm(6000, generator=make_generator(2))[:60]])[1].mean()
    assert seeded < 0.8 * drawn


def test_constant_frames_do_not_break_it() -> None:
    kmeans, inertia = fit_kmeans(torch.ones(200, 4), KMeansConfig(clusters=8), generator=make_generator(0))
    assert inertia == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(kmeans.centroids).all()


def test_saved_and_loaded_gives_the_same_codes(tmp_path: Path) -> None:
    kmeans = KMeans(_frames(9), {"upstream": "mfcc", "layer": 0})
    kmeans.save(tmp_path / "km")
    loaded = load_kmeans(tmp_path / "km")
    assert torch.equal(loaded.centroids, kmeans.centroids)
    assert loaded.info == {"upstream": "mfcc", "layer": 0}
    with pytest.raises(SpeechsslError, match="no k-means"):
        load_kmeans(tmp_path)
    (tmp_path / "km" / "kmeans.safetensors").write_text("no")
    with pytest.raises(SpeechsslError, match="can't be read"):
        load_kmeans(tmp_path / "km")


def test_too_few_frames_is_a_clear_error() -> None:
    with pytest.raises(SpeechsslError, match="fewer clusters or a larger sample"):
        fit_kmeans(torch.ones(3, 2), KMeansConfig(clusters=8), generator=make_generator(0))
