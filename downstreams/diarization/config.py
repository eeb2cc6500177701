"""Settings of speaker diarization; see README.md for where each comes from."""

from dataclasses import dataclass
from typing import Literal

from speechssl.errors import ConfigError
from speechssl.mixing.simulate import SimulationConfig
from speechssl.task import FeatureConfig, TaskConfig, TrainConfig

HeadKind = Literal["lstm", "blstm", "linear"]


@dataclass(frozen=True)
class DiarizationConfig(TaskConfig):
    """SUPERB's speaker diarization."""

    head: HeadKind = "lstm"
    """'lstm' is SUPERB's, which hears nothing of what comes; 'blstm' does; 'linear' has no memory at all."""
    num_speakers: int = 2
    """Most speakers of a recording."""
    num_layers: int = 1
    hidden_size: int = 512
    """Of each direction."""
    chunk: float = 40.0
    """Seconds; longer training recordings are cut into pieces of this length. S3PRL's 2000 frames at 50 Hz."""
    thresholds: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    """Candidates: a frame is speech where the probability is above. Dev decides."""
    medians: tuple[int, ...] = (1, 11)
    """Candidates: frames of the median filter, odd; 1 = none. Dev decides."""
    simulate: SimulationConfig | None = None
    """Makes conversations of the corpus' own utterances; None = the corpus has the label `segments`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train.max_duration is not None or self.features.pooling != "none":
            raise ConfigError(
                "Diarization needs every frame of a piece: set `chunk` instead of `train.max_duration`, and leave "
                "`features.pooling` at 'none'."
            )
        if not self.chunk > 0 or self.num_speakers < 1:
            raise ConfigError(
                f"`chunk` and `num_speakers` must be above 0, but are {self.chunk} and {self.num_speakers}."
            )
        if not self.thresholds or not self.medians or any(m < 1 or m % 2 == 0 for m in self.medians):
            raise ConfigError(
                f"`thresholds` must not be empty and `medians` must be odd numbers, but are {list(self.thresholds)} "
                f"and {list(self.medians)}."
            )


SUPERB = DiarizationConfig(
    # S3PRL accumulates 4 batches of 8; one of 32 has the same gradient, but for the weight of shorter batches.
    train=TrainConfig(steps=30_000, batch_seconds=32 * 40.0, max_batch_size=32, learning_rate=1e-4, evaluate_every=500)
)
DEMO = DiarizationConfig(
    train=TrainConfig(
        steps=300,
        batch_seconds=60.0,
        max_batch_size=8,
        learning_rate=2e-3,
        warmup_steps=20,
        schedule="linear",
        evaluate_every=100,
    ),
    features=FeatureConfig(normalize=True),
    hidden_size=64,
    simulate=SimulationConfig(train=100, dev=25, test=40, duration=8.0),
)
PRESETS = {"diarization": SUPERB, "diarization_demo": DEMO}
HEADS: dict[str, tuple[str, ...]] = {"lstm": ("head=lstm",), "blstm": ("head=blstm",), "linear": ("head=linear",)}
