"""Settings of intent classification; see README.md for where each comes from."""

from speechssl.classification.config import UTTERANCE_HEADS, ClassificationConfig
from speechssl.task import TrainConfig

SUPERB = ClassificationConfig(
    train=TrainConfig(steps=200_000, batch_seconds=256.0, max_batch_size=32, learning_rate=1e-4, evaluate_every=4_000),
    fields=("action", "object", "location"),
)
PRESETS = {"intent_classification": SUPERB}
HEADS = UTTERANCE_HEADS
