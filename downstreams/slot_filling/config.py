"""Settings of slot filling; see README.md for where each comes from."""

from dataclasses import dataclass
from typing import Literal

from speechssl.augment.spec_augment import SpecAugmentConfig
from speechssl.ctc.config import CtcConfig
from speechssl.task import FeatureConfig, TrainConfig


@dataclass(frozen=True)
class SlotConfig(CtcConfig):
    """SUPERB's slot filling."""

    metric: Literal["slot type f1", "slot value cer"] = "slot type f1"
    """What the best checkpoint is chosen by; both are always measured."""


SUPERB = SlotConfig(
    train=TrainConfig(steps=200_000, batch_seconds=1200.0, max_batch_size=32, learning_rate=1e-4, evaluate_every=2_000),
    # Adaptive: 0.04 masks per frame at 50 Hz, at most 20, each over at most 0.04 of the utterance.
    augment=SpecAugmentConfig(time_masks=20, time_masks_per_second=2.0, max_time_fraction=0.04),
)
DEMO = SlotConfig(
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
)
PRESETS = {"slot_filling": SUPERB, "slot_filling_demo": DEMO}
HEADS = {"recurrent": ("num_layers=2",), "linear": ("num_layers=0",)}
