"""Settings of tasks that spell an utterance by connectionist temporal classification."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from speechssl.augment.spec_augment import SpecAugmentConfig
from speechssl.errors import ConfigError
from speechssl.head.recurrent import RecurrentConfig
from speechssl.task import TaskConfig


@dataclass(frozen=True)
class CtcConfig(RecurrentConfig, TaskConfig):
    """A transcription; the defaults are SUPERB's recurrent head."""

    languages: tuple[str, ...] | None = None
    """Languages to train and test on; None = all."""
    max_train_utterances: int | None = None
    """Most training utterances per language, chosen by a hash of their ids; None = all."""
    max_eval_utterances: int | None = None
    """Most dev, and most test, utterances per language; None = all."""
    max_duration: float | None = None
    """Seconds; longer training utterances are left out, and counted in the log. Dev and test keep theirs."""
    leave_out_empty: bool = False
    """Whether utterances whose transcript is there but empty are left out, and counted in the log; they are an error
    otherwise. Utterances without a transcript take no part either way."""
    augment: SpecAugmentConfig | None = field(default_factory=SpecAugmentConfig)
    """None = no SpecAugment."""

    def __post_init__(self) -> None:
        TaskConfig.__post_init__(self)
        RecurrentConfig.__post_init__(self)
        if self.features.pooling != "none":
            raise ConfigError(f"`features.pooling={self.features.pooling}` leaves no frames to spell: set it to none.")


LINEAR = ("num_layers=0", "project_size=256")
"""SUPERB's head for phonemes."""
RECURRENT = ("num_layers=2", "project_size=1024", "hidden_size=1024")
"""SUPERB's head for characters."""
CTC_HEADS: Mapping[str, tuple[str, ...]] = {"linear": LINEAR, "recurrent": RECURRENT}
"""The `HEADS` of every transcription."""
