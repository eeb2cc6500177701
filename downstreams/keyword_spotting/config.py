"""Settings of keyword spotting; see README.md for where each comes from."""

from speechssl.classification.config import UTTERANCE_HEADS, ClassificationConfig
from speechssl.task import TrainConfig

SUPERB = ClassificationConfig(
    train=TrainConfig(steps=200_000, batch_seconds=64.0, max_batch_size=32, learning_rate=1e-4, evaluate_every=4_000),
    fields=("keyword",),
    balance="draws",
)
PRESETS = {"keyword_spotting": SUPERB}
HEADS = UTTERANCE_HEADS
