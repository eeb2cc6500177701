"""Settings of language identification; see README.md for where each comes from."""

from speechssl.classification.config import UTTERANCE_HEADS, ClassificationConfig
from speechssl.task import FeatureConfig, TrainConfig

DEFAULT = ClassificationConfig(
    train=TrainConfig(steps=50_000, batch_seconds=320.0, max_batch_size=32, learning_rate=1e-4, evaluate_every=1_000),
    fields=("language",),
    balance="draws",
    metric="uar",
)
DEMO = ClassificationConfig(
    train=TrainConfig(
        steps=400, batch_seconds=64.0, max_batch_size=32, learning_rate=1e-3, schedule="linear", evaluate_every=100
    ),
    features=FeatureConfig(normalize=True, pooling="mean"),
    fields=("language",),
    balance="draws",
    max_train_utterances=100,
    max_eval_utterances=40,
    leave_out_unknown=True,
    metric="uar",
)
PRESETS = {"language_identification": DEFAULT, "language_identification_demo": DEMO}
HEADS = UTTERANCE_HEADS
