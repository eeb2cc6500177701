"""Settings of speech recognition; see README.md for where each comes from."""

from dataclasses import dataclass
from typing import Literal

from speechssl.ctc.config import LINEAR, RECURRENT, CtcConfig
from speechssl.task import FeatureConfig, TrainConfig


@dataclass(frozen=True)
class AsrConfig(CtcConfig):
    """SUPERB's speech recognition."""

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
HEADS = {"recurrent": RECURRENT, "linear": LINEAR}
