"""Settings of speaker identification; see README.md for where each comes from."""

from speechssl.classification.config import UTTERANCE_HEADS, ClassificationConfig
from speechssl.task import FeatureConfig, TrainConfig

SUPERB = ClassificationConfig(
    train=TrainConfig(
        steps=200_000,
        # S3PRL accumulates 4 batches of 8; one of 32 has the same gradient.
        batch_seconds=256.0,
        max_batch_size=32,
        max_duration=8.0,
        learning_rate=1e-4,
        evaluate_every=4_000,
    ),
    features=FeatureConfig(pooling="mean", crops=4),
    fields=("speaker",),
)
DEMO = ClassificationConfig(
    train=TrainConfig(
        steps=400, batch_seconds=64.0, max_batch_size=32, learning_rate=1e-3, schedule="linear", evaluate_every=100
    ),
    features=FeatureConfig(normalize=True, pooling="mean"),
    fields=("speaker",),
    max_train_utterances=60,
    max_eval_utterances=30,
    leave_out_unknown=True,
)
PRESETS = {"speaker_identification": SUPERB, "speaker_identification_demo": DEMO}
HEADS = UTTERANCE_HEADS
