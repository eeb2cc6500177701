"""Measures over frames against scikit-learn and scipy, replicate by replicate."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from speechssl.errors import SpeechsslError
from speechssl.metric.frames import FRAME_MEASURES, frame_regression_metrics
from speechssl.metric.regression import regression_metrics

REFERENCES = {
    "mse": mean_squared_error,
    "rmse": lambda x, y: mean_squared_error(x, y) ** 0.5,
    "mae": mean_absolute_error,
    "r2": r2_score,
    "lcc": lambda x, y: stats.pearsonr(x, y).statistic,
    "ccc": lambda x, y: regression_metrics(x, y, measures=["ccc"])["ccc"].value,
}


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_values_and_intervals_are_those_of_scikit_learn_and_scipy(offset: float) -> None:
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(9), rng.integers(5, 30, 9))
    references = rng.normal(offset, 1, units.size) + 0.3 * units
    hypotheses = references + rng.normal(0.2, 0.6, units.size)
    found = frame_regression_metrics(references, hypotheses, [f"u{k}" for k in units], seed=3)
    draws = np.random.default_rng(3).multinomial(9, np.full(9, 1 / 9), size=1000)[:, units]
    assert set(found) == set(FRAME_MEASURES) == set(REFERENCES)
    for name in ("mse", "rmse", "mae", "r2", "lcc", "ccc"):
        value = found[name]
        assert value.value == pytest.approx(REFERENCES[name](references, hypotheses), abs=1e-8)
        assert (value.n, value.unit) == (units.size, "frames")
        if name == "ccc" or (offset and name != "r2"):  # a thousand calls of the reference take seconds
            continue
        replicates = [REFERENCES[name](np.repeat(references, d), np.repeat(hypotheses, d)) for d in draws]
        assert (value.low, value.high) == pytest.approx(tuple(np.quantile(replicates, [0.025, 0.975])), abs=1e-8)
    of_pairs = regression_metrics(references, hypotheses, groups=[f"u{k}" for k in units], seed=3)
    assert (found["ccc"].low, found["ccc"].high) == pytest.approx((of_pairs["ccc"].low, of_pairs["ccc"].high), abs=1e-8)


def test_degenerate_frames_are_measured_or_refused() -> None:
    found = frame_regression_metrics([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], ["a", "a", "b"])
    assert (found["lcc"].value, found["lcc"].low, found["ccc"].value) == (0.0, None, 0.0)
    assert found["r2"].value == pytest.approx(0.0, abs=1e-12)
    perfect = frame_regression_metrics([0.1, 0.1, 0.3], [0.1, 0.1, 0.3], [0, 0, 1])
    assert [perfect[n].value for n in FRAME_MEASURES] == pytest.approx([0.0, 0.0, 0.0, 1.0, 1.0, 1.0], abs=1e-12)
    # Of replicates, those that draw only the first unit have no spread and are left out.
    assert (perfect["r2"].low, perfect["r2"].high) == pytest.approx((1.0, 1.0), abs=1e-12)
    for references, hypotheses, message in (
        ([], [], "one frame or more"),
        ([1.0, 2.0], [1.0], "but there are 2, 1 and 2"),
        ([1.0, np.inf], [1.0, 2.0], "must be finite"),
        ([2.0, 2.0], [1.0, 2.0], r"all 2 frames are 2\.0"),
    ):
        with pytest.raises(SpeechsslError, match=message):
            frame_regression_metrics(references, hypotheses, list(range(len(references))))
