"""Crops of long utterances: drawn once, cached, and one of them heard at each visit."""

import pytest
import torch

from speechssl.crops import choose_crops, draw_crops, training_crops
from speechssl.errors import ConfigError
from speechssl.task import FeatureConfig, TaskConfig, TrainConfig
from speechssl.types import Utterance

LONG = Utterance("long", "long.flac", start=2.0, duration=10.0)
SHORT = Utterance("short", "short.flac", duration=1.5)
CONFIG = TaskConfig(TrainConfig(max_duration=4.0), FeatureConfig(pooling="mean", crops=3))


def test_crops_lie_within_their_utterance_and_are_the_same_each_time() -> None:
    crops = draw_crops(LONG, seconds=4.0, count=50)
    assert all(2.0 <= c.start <= 8.0 and c.duration == 4.0 and c.path == LONG.path for c in crops)
    assert len({c.id for c in crops}) == len({c.start for c in crops}) == 50
    assert crops == draw_crops(LONG, seconds=4.0, count=50)
    assert max(c.start for c in crops) > 7.0
    assert min(c.start for c in crops) < 3.0


def test_only_longer_utterances_are_cropped() -> None:
    assert list(training_crops([LONG, SHORT], CONFIG)) == ["long"]
    assert draw_crops(SHORT, seconds=1.5, count=3) == []
    assert training_crops([LONG], TaskConfig()) == {}


def test_each_visit_hears_one_crop_and_over_visits_all_of_them() -> None:
    crops = training_crops([LONG, SHORT], CONFIG)
    generator = torch.Generator().manual_seed(0)
    heard = [choose_crops([LONG, SHORT], crops, generator) for _ in range(60)]
    assert {u.id for first, _ in heard for u in [first]} == {c.id for c in crops["long"]}
    assert all(second is SHORT for _, second in heard)


def test_pooled_features_without_crops_can_not_be_cut() -> None:
    with pytest.raises(ConfigError, match=r"set `features\.crops`"):
        TaskConfig(TrainConfig(max_duration=4.0), FeatureConfig(pooling="mean"))
    with pytest.raises(ConfigError, match=r"`train\.max_duration=None`"):
        TaskConfig(TrainConfig(), FeatureConfig(crops=2))
