"""Similarities of views, against decompositions of the whole matrices, Gram matrices and values that are known."""

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import CCA

from speechssl.analysis.similarity import (
    Correlation,
    canonical_correlations,
    cca,
    linear_cka,
    projection_weighted,
    svcca,
)
from speechssl.analysis.views import Views, one_hot
from speechssl.errors import SpeechsslError


def _random(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _related(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of 6 and 4 dimensions that share two."""
    shared, x, y = _random(rows, 2, 1), _random(rows, 6, 2), _random(rows, 4, 3)
    return x + 3 + shared @ _random(2, 6, 4), y + shared @ _random(2, 4, 5)


def _views(x: torch.Tensor, y: torch.Tensor, rows: int = 50) -> Views:
    views = Views()
    for a, b in zip(torch.split(x, rows), torch.split(y, rows), strict=True):
        views.add({"x": a, "y": b})
    return views


def test_canonical_correlations_equal_those_of_whole_matrices_and_of_scikit_learn() -> None:
    x, y = _related(500)
    found = canonical_correlations(x, y)
    bases = [np.linalg.qr((v - v.mean(0)).numpy())[0] for v in (x, y)]
    np.testing.assert_allclose(found, np.linalg.svd(bases[0].T @ bases[1], compute_uv=False), atol=1e-10)
    a, b = CCA(n_components=4, max_iter=10_000, tol=1e-12).fit(x.numpy(), y.numpy()).transform(x.numpy(), y.numpy())
    np.testing.assert_allclose(found, [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(4)], atol=1e-5)


def test_projection_weights_equal_a_slow_loop_over_columns() -> None:
    x, y = _related(300)
    bases = [np.linalg.qr((v - v.mean(0)).numpy())[0] for v in (x, y)]
    _, s, right = np.linalg.svd(bases[0].T @ bases[1], full_matrices=False)
    columns, h = (y - y.mean(0)).numpy(), bases[1] @ right.T  # the second view is the narrower one
    weights = [sum(abs(float(h[:, i] @ columns[:, j])) for j in range(4)) for i in range(4)]
    assert projection_weighted(x, y) == pytest.approx(float(np.dot(weights, s) / np.sum(weights)), abs=1e-10)


def test_views_that_are_maps_of_each_other_correlate_by_1_and_noise_by_less_the_more_rows() -> None:
    x = _random(2000, 8)
    same = cca(_views(x, x @ _random(8, 8, 1) + 5), "x", "y")
    assert same.mean == pytest.approx(1, abs=1e-6)
    assert same.pwcca == pytest.approx(1, abs=1e-6)
    assert (same.n, same.note) == (2000, "")
    in_sample = [float(canonical_correlations(_random(n, 8, 2), _random(n, 8, 3)).mean()) for n in (20, 200, 20_000)]
    assert in_sample[0] > 0.5
    assert 0.03 < in_sample[1] < 0.3
    assert in_sample[2] < 0.03
    held_out = cca(_views(_random(4000, 8, 2), _random(4000, 8, 3)), "x", "y")
    assert abs(held_out.mean) < 0.05
    assert abs(held_out.pwcca) < 0.05


def test_the_held_out_fold_is_scored_as_a_slow_fit_on_the_other_rows_scores_it() -> None:
    x, y = _related(600)
    found = cca(_views(x, y, 60), "x", "y", epsilons=(1e-3,), trials=3, seed=4)
    order = np.random.default_rng(4).permutation(10).tolist()
    expected = []
    for dev, test in ((order[0], order[1]), (order[2], order[3]), (order[4], order[5])):
        held = np.repeat([i == test for i in range(10)], 60)
        fitted = np.repeat([i not in (dev, test) for i in range(10)], 60)
        expected.append(_slow_held_out(x.numpy(), y.numpy(), fitted, held))
    assert found.mean == pytest.approx(np.mean(expected), abs=1e-9)
    assert found.epsilons == ((1e-3, 1e-3),) * 3


def _slow_held_out(x: np.ndarray, y: np.ndarray, fitted: np.ndarray, held: np.ndarray) -> float:
    a, b = x[fitted] - x[fitted].mean(0), y[fitted] - y[fitted].mean(0)
    roots = []
    for v in (a, b):
        covariance = v.T @ v / len(v)
        values, vectors = np.linalg.eigh(covariance + 1e-3 * np.abs(covariance).max() * np.eye(len(covariance)))
        roots.append(vectors @ np.diag(values**-0.5) @ vectors.T)
    left, _, right = np.linalg.svd(roots[0] @ (a.T @ b / len(a)) @ roots[1], full_matrices=False)
    p, q = x[held] @ roots[0] @ left, y[held] @ roots[1] @ right.T
    return float(np.mean([np.corrcoef(p[:, i], q[:, i])[0, 1] for i in range(4)]))


def test_regularisation_saves_what_few_rows_in_many_dimensions_share() -> None:
    shared = _random(200, 3, 1)
    x, y = shared @ _random(3, 100, 2) * 3 + _random(200, 100, 3), shared @ _random(3, 5, 4) * 3 + _random(200, 5, 5)
    views = _views(x, y, 20)
    free, chosen = cca(views, "x", "y", epsilons=(1e-10,)), cca(views, "x", "y")
    assert chosen.pwcca > free.pwcca + 0.03
    assert max(e for e, _ in chosen.epsilons) >= 1e-2
    short = cca(_views(x[:60], y[:60], 6), "x", "y")
    assert "60 rows in 100 dimensions" in short.note


def test_svcca_leaves_directions_without_variance_aside() -> None:
    x, y = _random(1000, 3), _random(1000, 3, 1)
    hidden = _random(1000, 1, 2) * 1e-3  # both views have it, and it holds nearly none of their variance
    views = _views(torch.cat((x, hidden), dim=1), torch.cat((y, hidden), dim=1), 100)
    found, with_all = svcca(views, "x", "y"), cca(views, "x", "y", epsilons=(0.0,))
    assert (found.directions, with_all.directions) == (3, 4)
    assert abs(found.mean) < 0.1
    assert with_all.mean == pytest.approx(0.25, abs=0.1)


def test_linear_cka_equals_its_form_with_gram_matrices_of_all_rows() -> None:
    x, y = _related(150)
    a, b = (v - v.mean(0) for v in (x, y))
    gram = [(v @ v.T).flatten() for v in (a, b)]
    expected = float(gram[0] @ gram[1] / (gram[0].norm() * gram[1].norm()))
    assert linear_cka(_views(x, y), "x", "y") == pytest.approx(expected, abs=1e-12)
    turned = 7 * x @ torch.linalg.qr(_random(6, 6, 8))[0]
    assert linear_cka(_views(x, turned), "x", "y") == pytest.approx(1, abs=1e-12)


def test_labels_are_a_view_and_one_class_is_refused() -> None:
    labels = torch.arange(400) % 5
    x = one_hot(labels, 5).double() @ _random(5, 12, 1) + 0.01 * _random(400, 12, 2)
    assert isinstance(found := cca(_views(x, one_hot(labels, 5), 40), "x", "y"), Correlation)
    assert found.pwcca > 0.99
    assert found.directions == 4  # five columns that sum to 1
    with pytest.raises(SpeechsslError, match="'y' is the same in all rows"):
        cca(_views(x, one_hot(labels * 0, 5), 40), "x", "y")
    with pytest.raises(SpeechsslError, match="need rows in 3 folds, but 1"):
        cca(_views(x, x, 400), "x", "y")
    with pytest.raises(SpeechsslError, match=r"must lie in 0\.\.3"):
        one_hot(labels, 4)
    with pytest.raises(SpeechsslError, match="same rows"):
        Views().add({"x": x, "y": x[1:]})
