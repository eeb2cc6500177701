"""What clusters tell of labels, against scikit-learn, slow loops and tables that are known."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score, mutual_info_score, normalized_mutual_info_score

from speechssl.analysis.information import cluster_information, count_pairs, information, table_information
from speechssl.errors import SpeechsslError


def _drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and codes that tell some of them."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(7, size=n, p=[0.3, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05])
    codes = np.where(
        generator.random(n) < 0.6, labels * 2 + generator.integers(2, size=n), generator.integers(20, size=n)
    )
    return codes, labels


def test_information_equals_that_of_scikit_learn_and_slow_counts() -> None:
    codes, labels = _drawn(3000)
    found = information(codes, torch.as_tensor(labels))
    assert found.bits == pytest.approx(mutual_info_score(labels, codes) / math.log(2), abs=1e-12)
    assert found.nmi == pytest.approx(normalized_mutual_info_score(labels, codes), abs=1e-12)
    assert found.share == pytest.approx(mutual_info_score(labels, codes) / mutual_info_score(labels, labels), abs=1e-12)
    assert found.ami == pytest.approx(adjusted_mutual_info_score(labels, codes), abs=1e-9)
    right = sum(max(Counter(labels[codes == z]).values()) for z in set(codes.tolist()))
    kept = sum(max(Counter(codes[labels == y]).values()) for y in set(labels.tolist()))
    assert (found.purity, found.cluster_purity) == (right / 3000, kept / 3000)
    parts = count_pairs(codes[:1000], labels[:1000]), count_pairs(codes[1000:], labels[1000:])
    assert table_information(parts[0] + parts[1]) == found


def test_clusters_that_are_the_labels_tell_all_and_ones_that_know_nothing_as_much_as_chance() -> None:
    labels = _drawn(20_000)[1]
    exact = information((6 - labels), labels)
    assert exact.share == pytest.approx(1)
    assert exact.nmi == pytest.approx(1)
    assert exact.purity == 1
    unknowing = [information(np.random.default_rng(seed).integers(50, size=500), labels[:500]) for seed in range(20)]
    assert np.mean([u.bits for u in unknowing]) == pytest.approx(np.mean([u.chance for u in unknowing]), rel=0.03)
    assert np.mean([u.ami for u in unknowing]) == pytest.approx(0, abs=0.01)


def test_the_interval_is_that_of_leaving_groups_out_in_a_loop() -> None:
    codes, labels = _drawn(600)
    groups = np.repeat(np.arange(12), 50)
    found = information(codes, labels, groups=groups + 5)
    left = np.array([information(codes[groups != g], labels[groups != g]).share for g in range(12)])
    error = math.sqrt(11 / 12 * float(((left - left.mean()) ** 2).sum()))
    assert found.low == pytest.approx(found.share - 1.96 * error, abs=1e-12)
    assert found.high == pytest.approx(found.share + 1.96 * error, abs=1e-12)
    assert "no interval" in information(codes, labels, groups=np.zeros(600, dtype=int)).note


def test_clusters_of_separate_classes_tell_phones_and_not_speakers() -> None:
    generator = torch.Generator().manual_seed(0)
    phones = torch.randint(4, (800,), generator=generator)
    frames = 20 * torch.eye(4)[phones] + torch.randn(800, 4, generator=generator)
    speakers = torch.randint(3, (400,), generator=generator)
    heard = phones[400:].clone()
    heard[:100] = -1
    found = cluster_information(
        frames[:400], frames[400:], {"phone": heard, "speaker": speakers}, clusters=4, generator=generator
    )
    assert (found["phone"].n, found["speaker"].n) == (300, 400)
    assert found["phone"].share == pytest.approx(1)
    assert found["speaker"].share < 0.05


def test_what_says_nothing_is_noted_and_what_is_wrong_refused() -> None:
    codes, labels = _drawn(50)
    one = information(codes, labels * 0)
    assert (one.share, one.purity) == (0, 1)
    assert "same label" in one.note
    assert "collapsed" in information(codes * 0, labels).note
    with pytest.raises(SpeechsslError, match="label for each of the 50"):
        information(codes, labels[1:])
    with pytest.raises(SpeechsslError, match="from 0 on, but holds -1"):
        information(codes, labels - 1)
