"""Settings of speech recognition; see README.md for where each comes from."""

from dataclasses import dataclass, field
from typing import Literal

from speechssl.augment.spec_augment import SpecAugmentConfig
from speechssl.task import FeatureConfig, TaskConfig, TrainConfig


@dataclass(frozen=True)
class AsrConfig(TaskConfig):
    """SUPERB's speech recognition."""

    languages: tuple[str, ...] | None = None
    """Languages to train and test on; None = all."""
    max_train_utterances: int | None = None
    """Most training utterances per language, chosen by a hash of their ids; None = all."""
    max_eval_utterances: int | None = None
    """Most dev, and most test, utterances per language; None = all."""
    max_duration: float | None = None
    """Seconds; longer training utterances are left out, and counted in the log. Dev and test keep theirs."""
    label_rate: float | None = None
    """Hz; frames are stacked to about this rate before the LSTM, unless they are coarser. None = the upstream's own."""
    standardise: bool = False
    """Whether the features go through `speechssl.head.standardise` first. SUPERB does not; with it, CTC sooner leaves
    the plateau where it emits only blanks."""
    project_size: int = 1024
    hidden_size: int = 1024
    """Of each direction of each LSTM layer."""
    num_layers: int = 2
    dropout: float = 0.2
    """After each LSTM layer."""
    augment: SpecAugmentConfig | None = field(default_factory=SpecAugmentConfig)
    """None = no SpecAugment."""
    metric: Literal["wer", "cer"] = "wer"
    """What the best checkpoint is chosen by; both are always measured."""


SUPERB = AsrConfig(
    train=TrainConfig(steps=200_000, batch_seconds=1200.0, max_batch_size=32, learning_rate=1e-4, evaluate_every=2_000)
)
# Many small steps, so that a head leaves the all-blank plateau of CTC within a minute of one core.
DEMO = AsrConfig(
    train=TrainConfig(
        steps=900,
        batch_seconds=20.0,
        learning_rate=3e-3,
        warmup_steps=50,
        schedule="linear",
        evaluate_every=100,
    ),
    features=FeatureConfig(normalize=True),
    label_rate=25.0,
    standardise=True,
    project_size=128,
    hidden_size=128,
    augment=None,
    metric="cer",
)
PRESETS = {"asr": SUPERB, "asr_demo": DEMO}
