"""Settings of speech enhancement; see README.md for where each comes from."""

from dataclasses import dataclass

from speechssl.mixing.simulate import SimulationConfig
from speechssl.separation.config import MASK_HEADS, MaskingConfig, Metric
from speechssl.task import FeatureConfig, TrainConfig


@dataclass(frozen=True)
class SpeechEnhancementConfig(MaskingConfig):
    """SUPERB's speech enhancement."""

    n_fft: int = 512
    win_length: int = 512
    metric: Metric = "pesq"
    metrics: tuple[Metric, ...] = ("pesq", "stoi", "si_sdri", "si_sdr")


SECOND = SpeechEnhancementConfig(
    train=TrainConfig(
        steps=100_000,
        batch_seconds=8 * 30.0,
        max_batch_size=8,
        optimizer="adamw",
        learning_rate=1e-3,
        evaluate_every=1_250,
    ),
    win_length=400,
    hop_length=160,
    target="am",
    distance="l1",
)
FIRST = SpeechEnhancementConfig(
    train=TrainConfig(
        steps=150_000,
        batch_seconds=8 * 30.0,
        max_batch_size=8,
        optimizer="adamw",
        learning_rate=1e-4,
        evaluate_every=1_250,
    ),
    hidden_size=896,
    dropout=0.5,
    activation="relu",
    compression="none",
)
DEMO = SpeechEnhancementConfig(
    train=TrainConfig(
        steps=100,
        batch_seconds=32.0,
        max_batch_size=8,
        optimizer="adamw",
        learning_rate=3e-3,
        warmup_steps=10,
        schedule="linear",
        evaluate_every=50,
    ),
    features=FeatureConfig(normalize=True),
    num_layers=1,
    hidden_size=64,
    win_length=400,
    hop_length=160,
    metric="si_sdri",
    metrics=("si_sdri", "si_sdr"),
    simulate=SimulationConfig(train=120, dev=25, test=40, duration=3.0, snr_db=(0.0, 15.0)),
)
PRESETS = {"speech_enhancement": SECOND, "speech_enhancement_first": FIRST, "speech_enhancement_demo": DEMO}
HEADS = MASK_HEADS
