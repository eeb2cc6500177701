"""Settings of tasks that give an utterance one label, or one per field."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from speechssl.errors import ConfigError
from speechssl.head.utterance import NEEDS_FRAMES, Kind
from speechssl.task import FeatureConfig, TaskConfig


@dataclass(frozen=True)
class ClassificationConfig(TaskConfig):
    """A classification of utterances; the defaults are SUPERB's head."""

    features: FeatureConfig = field(default_factory=lambda: FeatureConfig(pooling="mean"))
    fields: tuple[str, ...] = ("label",)
    """Labels of an utterance that are predicted, each from classes of its own; right = all of them are."""
    head: Kind = "linear"
    hidden_size: int = 256
    dropout: float = 0.0
    """Before the last layer."""
    balance: Literal["none", "loss", "draws"] = "none"
    """How rare classes are made to count: 'loss' = each class weighs the same in the loss, 'draws' = each class is
    heard equally often."""
    languages: tuple[str, ...] | None = None
    """Languages to train and test on; None = all."""
    max_train_utterances: int | None = None
    """Most training utterances per class, chosen by a hash of their ids; None = all."""
    max_eval_utterances: int | None = None
    """Most dev, and most test, utterances per class; None = all."""
    leave_out_unknown: bool = False
    """Whether dev and test utterances of classes without a training example are left out, and counted in the log; they
    are an error otherwise."""
    metric: Literal["accuracy", "uar", "macro f1"] = "accuracy"
    """What the best checkpoint is chosen by; all are always measured. 'uar' is the unweighted average recall."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fields or len(set(self.fields)) != len(self.fields):
            raise ConfigError(f"`fields` must be distinct and at least one, but is {list(self.fields)}.")
        if self.metric != "accuracy" and len(self.fields) > 1:
            raise ConfigError(f"`metric={self.metric}` is of one field, but `fields` are {list(self.fields)}.")
        if self.head in NEEDS_FRAMES and self.features.pooling == "mean":
            raise ConfigError(f"`head={self.head}` needs frames: set `features.pooling=none`.")


UTTERANCE_HEADS: Mapping[str, tuple[str, ...]] = {
    "linear": ("head=linear", "features.pooling=mean"),
    "mlp": ("head=mlp", "features.pooling=mean"),
    "attentive": ("head=attentive", "features.pooling=none"),
}
"""The `HEADS` of every classification."""
