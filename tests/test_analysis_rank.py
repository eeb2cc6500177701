"""Geometry of frames, against singular values of the whole matrix, slow loops and spectra that are known."""

import math

import numpy as np
import pytest
import torch

from speechssl.analysis.rank import GeometryMeter, decorrelation_gap, geometry, rankme, sample_frames
from speechssl.errors import SpeechsslError
from speechssl.moments import Moments


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _orthonormal(rows: int, columns: int) -> torch.Tensor:
    basis: torch.Tensor = torch.linalg.qr(torch.randn(rows, columns, generator=_generator(), dtype=torch.float64))[0]
    return basis


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_rankme_of_a_known_spectrum(rank: int) -> None:
    frames = _orthonormal(400, 12)[:, :rank] @ _orthonormal(12, 12)[:rank]
    assert geometry(frames).rankme == pytest.approx(rank, abs=1e-3)  # 1e-7 in each share shifts it by this little


def test_geometry_in_pieces_equals_slow_formulas_on_the_whole_matrix() -> None:
    x = torch.randn(700, 9, generator=_generator()) @ torch.diag(torch.logspace(0, -3, 9)) + 0.3
    meter = GeometryMeter()
    for piece in torch.split(x, [1, 0, 350, 349]):
        meter.add(piece)
    found = meter.finish()
    a = x.double().numpy()
    s = np.linalg.svd(a, compute_uv=False)
    p = s / s.sum() + 1e-7
    centred = np.linalg.svd(a - a.mean(0), compute_uv=False)
    q = centred / centred.sum()
    unit = a / np.linalg.norm(a, axis=1, keepdims=True)
    cosine = unit @ unit.T
    assert found.rankme == pytest.approx(float(np.exp(-(p * np.log(p)).sum())), rel=1e-9)
    assert found.effective_rank == pytest.approx(float(np.exp(-(q * np.log(q)).sum())), rel=1e-9)
    assert found.mean_cosine == pytest.approx(float((cosine.sum() - 700) / (700 * 699)), rel=1e-9)
    assert found.deviation == pytest.approx(float(a.std(axis=0, ddof=1).mean()), rel=1e-9)
    assert found.spread == pytest.approx(float(np.sqrt(a.var(axis=0).sum() / (a**2).sum(1).mean())), rel=1e-9)
    assert found.isotropy == pytest.approx(_iso_score(a), rel=1e-6)
    assert (found.n, found.width, found.note) == (700, 9, "")


def _iso_score(a: np.ndarray) -> float:
    """Step by step as the code of Rudman et al. 2022."""
    n = a.shape[1]
    diagonal = np.linalg.eigvalsh(np.cov(a.T))
    normed = diagonal / np.linalg.norm(diagonal) * math.sqrt(n)
    defect = np.linalg.norm(normed - 1) / math.sqrt(2 * (n - math.sqrt(n)))
    used = (n - defect**2 * (n - math.sqrt(n))) ** 2 / n**2
    return float((n * used - 1) / (n - 1))


def test_a_collapsing_model_shows_in_every_measure() -> None:
    x = torch.randn(2000, 16, generator=_generator())
    alive, dying = geometry(x), geometry(x[:1] * 4 + 1e-3 * x)
    assert dying.rankme < 2
    assert alive.rankme > 15
    assert dying.mean_cosine > 0.99
    assert abs(alive.mean_cosine) < 0.01
    assert dying.spread < 0.01
    assert alive.spread > 0.9
    dead = geometry(torch.ones(50, 16))
    assert (dead.effective_rank, dead.deviation, dead.spread) == (0, 0, 0)
    assert dead.rankme == pytest.approx(1, abs=1e-3)
    assert "collapsed" in dead.note


def test_fewer_frames_than_dimensions_are_noted_and_others_refused() -> None:
    assert "no rank can be above 5" in geometry(torch.randn(5, 8, generator=_generator())).note
    with pytest.raises(SpeechsslError, match="at least 2 frames"):
        geometry(torch.ones(1, 3))
    with pytest.raises(SpeechsslError, match="not finite"):
        geometry(torch.tensor([[1.0, math.nan]]))
    assert rankme(torch.zeros(4)) == 0


def test_sampled_frames_are_a_gap_apart_and_about_as_many_as_asked_for() -> None:
    lengths = [300, 7, 0, 1000, 55]
    chosen = sample_frames(lengths, total=10_000, gap=4, generator=_generator())
    assert all(len(c) < 2 or int(c.diff().min()) >= 4 for c in chosen)
    assert all(len(c) == 0 or int(c.max()) < n for c, n in zip(chosen, lengths, strict=True))
    assert sum(map(len, chosen)) == pytest.approx(sum(lengths) / 4, abs=len(lengths))
    assert sum(map(len, sample_frames(lengths, total=50, generator=_generator()))) == pytest.approx(50, abs=5)


def test_the_gap_of_a_moving_average_is_its_length() -> None:
    noise = torch.randn(20_000, 4, generator=_generator())
    smooth = noise.unfold(0, 10, 1).mean(dim=2)  # correlates by 1 - lag / 10
    assert decorrelation_gap([smooth[:9000] + 5, smooth[9000:] - 5]) == 7  # the first below 1 / e
    assert decorrelation_gap([noise]) == 1


def test_merged_moments_are_those_of_all_rows() -> None:
    x = torch.randn(90, 5, generator=_generator()) * 3 + 100
    parts, whole = [Moments() for _ in range(3)], Moments()
    for part, rows in zip(parts, torch.split(x, 40), strict=True):
        part.add(rows)
    whole.add(x)
    joined = Moments()
    for part in (*parts, Moments()):
        joined.merge(part)
    torch.testing.assert_close(joined.covariance(), whole.covariance(), rtol=1e-12, atol=1e-12)
    assert joined.count == 90
