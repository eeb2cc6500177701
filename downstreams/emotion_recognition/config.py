"""Settings of emotion recognition; see README.md for where each comes from."""

from dataclasses import dataclass

from speechssl.classification.config import UTTERANCE_HEADS, ClassificationConfig
from speechssl.errors import ConfigError
from speechssl.task import TrainConfig

FOLDS = 5


@dataclass(frozen=True)
class EmotionRecognitionConfig(ClassificationConfig):
    """SUPERB's emotion recognition."""

    fields: tuple[str, ...] = ("emotion",)
    fold: int = 1
    """The session that is tested on, from 1 to 5; SUPERB's score is the mean over the five."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.fold <= FOLDS:
            raise ConfigError(f"`fold` must be from 1 to {FOLDS}, but is {self.fold}.")


SUPERB = EmotionRecognitionConfig(
    # S3PRL accumulates 8 batches of 4; one of 32 has the same gradient.
    train=TrainConfig(steps=30_000, batch_seconds=640.0, max_batch_size=32, learning_rate=1e-4, evaluate_every=1_000)
)
PRESETS = {"emotion_recognition": SUPERB}
HEADS = UTTERANCE_HEADS
