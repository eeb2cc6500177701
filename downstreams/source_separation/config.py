"""Settings of source separation; see README.md for where each comes from."""

from dataclasses import dataclass

from speechssl.mixing.simulate import SimulationConfig
from speechssl.separation.config import MASK_HEADS, MaskingConfig
from speechssl.task import FeatureConfig, TrainConfig


@dataclass(frozen=True)
class SourceSeparationConfig(MaskingConfig):
    """SUPERB's source separation: two voices."""


SECOND = SourceSeparationConfig(
    train=TrainConfig(
        steps=150_000,
        batch_seconds=8 * 30.0,
        max_batch_size=8,
        optimizer="adamw",
        learning_rate=1e-3,
        evaluate_every=2_000,
    )
)
FIRST = SourceSeparationConfig(
    train=TrainConfig(
        steps=150_000,
        batch_seconds=8 * 30.0,
        max_batch_size=8,
        optimizer="adamw",
        learning_rate=1e-4,
        evaluate_every=2_000,
    ),
    hidden_size=896,
    dropout=0.5,
    activation="relu",
    n_fft=512,
    win_length=512,
    compression="none",
)
# Without compression, masks that know nothing (one half everywhere) cost nothing in SI-SDR; with it, they do.
DEMO = SourceSeparationConfig(
    train=TrainConfig(
        steps=150,
        batch_seconds=32.0,
        max_batch_size=12,
        optimizer="adamw",
        learning_rate=2e-3,
        warmup_steps=10,
        schedule="linear",
        evaluate_every=50,
    ),
    features=FeatureConfig(normalize=True),
    num_layers=1,
    hidden_size=96,
    dropout=0.2,
    n_fft=512,
    win_length=512,
    compression="none",
    metrics=("si_sdri", "si_sdr"),
    simulate=SimulationConfig(train=400, dev=25, test=40, duration=2.5),
)
PRESETS = {"source_separation": SECOND, "source_separation_first": FIRST, "source_separation_demo": DEMO}
HEADS = MASK_HEADS
