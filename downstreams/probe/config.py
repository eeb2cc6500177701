"""Settings of a probe; see README.md."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from speechssl.classification.config import UTTERANCE_HEADS, ClassificationConfig
from speechssl.classification.data import SPLITS
from speechssl.errors import ConfigError
from speechssl.head.utterance import NEEDS_FRAMES
from speechssl.metric.frames import FRAME_MEASURES
from speechssl.metric.regression import ERRORS, MEASURES
from speechssl.task import FeatureConfig, TrainConfig

FOLDS = 5
CLASS_METRICS = ("accuracy", "uar", "macro f1")
SYSTEM = "system "
"""Begins the name of a measure that compares the means of systems."""
Metric = Literal[
    "accuracy", "uar", "macro f1",
    "mse", "rmse", "mae", "r2", "ccc", "lcc", "srcc", "ktau",
    "system mse", "system rmse", "system mae", "system r2", "system ccc", "system lcc", "system srcc", "system ktau",
]  # fmt: skip


@dataclass(frozen=True)
class ProbeConfig(ClassificationConfig):
    """A classification as `ClassificationConfig`, or a regression; `fields` are the labels."""

    kind: Literal["classification", "regression"] = "classification"
    level: Literal["utterance", "segment", "frame"] = "utterance"
    """'segment': the label is a list of {start, end, value}, seconds from the beginning of the utterance, and each of
    them is predicted from the mean of the frames within it, which have heard the whole utterance. 'frame': the same
    list, whose entries must not overlap, and each frame is predicted by itself; what `max_train_utterances` and
    `max_eval_utterances` count is then utterances, of whatever class."""
    metric: Metric = "uar"  # type: ignore[assignment]  # those of a regression as well
    """What the best checkpoint is chosen by, of the kind; 'system srcc' and the like need `system`."""
    splits: dict[str, str] = field(default_factory=dict)
    """'train', 'dev', 'test' -> the split of the corpus, where it has another name."""
    fold: int = 0
    """0 = the splits of the corpus. 1 to 5: all of them together are divided into fifths, with whole groups and like
    labels in each; this fifth is tested on, the next is dev, and the mean over five is the score."""
    group: str | None = None
    """Label that train, dev and test must not share, such as 'speaker'; None = not looked at."""
    overlap: Literal["refuse", "warn"] = "refuse"
    """What is done where they share a group."""
    standardise: bool = True
    """Whether the features are brought to mean 0 and deviation 1 in each dimension before the head."""
    loss: Literal["mse", "mae", "ccc"] = "mse"
    """Of a regression, whose labels are brought to mean 0 and deviation 1 of training: squared or absolute error, or 1
    less the concordance within the batch."""
    system: str | None = None
    """Of a regression, the label that says which system made an utterance, to compare systems by their means."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_kind()
        if self.level != "utterance":
            self._check_spans()
        if self.level == "frame":
            self._check_frames()
        if not 0 <= self.fold <= FOLDS:
            raise ConfigError(f"`fold` must be 0 (the splits of the corpus), or from 1 to {FOLDS}, but is {self.fold}.")
        for name in self.splits:
            if name not in SPLITS:
                raise ConfigError(f"`splits` says what {', '.join(SPLITS)} are called in the corpus, but has '{name}'.")

    def _check_kind(self) -> None:
        regression = self.kind == "regression"
        if regression != (self.metric not in CLASS_METRICS):
            known = [*MEASURES, *(SYSTEM + name for name in MEASURES)] if regression else CLASS_METRICS
            raise ConfigError(f"`metric` of a {self.kind} must be one of {', '.join(known)}, but is {self.metric}.")
        if self.metric.startswith(SYSTEM) and self.system is None:
            raise ConfigError(f"`metric={self.metric}` needs the label that names the systems: set `system`.")
        if regression and (len(self.fields) != 1 or self.balance != "none"):
            raise ConfigError(
                "A regression has one label and no classes: `fields` must hold one, but holds "
                f"{list(self.fields)}, and `balance` must be none, but is {self.balance}."
            )
        if not regression and (self.loss != "mse" or self.system is not None):
            raise ConfigError("`loss` and `system` belong to `kind=regression`: leave them out.")

    def _check_spans(self) -> None:
        if self.features.pooling != "none" or self.train.max_duration is not None:
            raise ConfigError(
                f"`level={self.level}` needs the frames of whole utterances: set `features.pooling=none` and "
                "`train.max_duration=null`."
            )
        if len(self.fields) != 1 or self.balance == "draws":
            raise ConfigError(
                f"`level={self.level}` takes one label, and utterances are drawn with all their {self.level}s: "
                f"`fields` must hold one, but holds {list(self.fields)}, and `balance` must not be draws, but is "
                f"{self.balance}."
            )

    def _check_frames(self) -> None:
        if self.head in NEEDS_FRAMES:
            raise ConfigError(
                f"`head={self.head}` joins the frames of an utterance, but `level=frame` tells each by itself: take "
                "`head=linear` or `head=mlp` (`--heads linear,mlp`)."
            )
        if self.kind == "regression" and self.metric not in FRAME_MEASURES:
            raise ConfigError(
                f"`metric` of a regression of frames must be one of {', '.join(FRAME_MEASURES)}, but is {self.metric}."
            )


def about(config: ProbeConfig) -> str:
    """The labels, as a part of a file's name."""
    return "_".join(re.sub(r"[^\w.-]+", "_", name) for name in config.fields)


def lower_is_better(metric: str) -> bool:
    """Whether it is an error."""
    return metric.removeprefix(SYSTEM) in ERRORS


TRAIN = TrainConfig(
    steps=2_000, batch_seconds=256.0, max_batch_size=32, learning_rate=1e-3, schedule="linear", evaluate_every=100
)
CLASSES = ProbeConfig(train=TRAIN, balance="loss")
NUMBERS = ProbeConfig(train=TRAIN, kind="regression", metric="ccc")
SEGMENTS = ProbeConfig(train=TRAIN, level="segment", balance="loss", features=FeatureConfig())
DEMO = ProbeConfig(
    train=TrainConfig(
        steps=600, batch_seconds=64.0, max_batch_size=32, learning_rate=1e-3, schedule="linear", evaluate_every=100
    ),
    features=FeatureConfig(pooling="mean"),
    fields=("tone",),
    metric="accuracy",
)
FRAMES = ProbeConfig(train=TRAIN, level="frame", metric="accuracy", features=FeatureConfig())
PRESETS = {
    "probe": CLASSES,
    "probe_regression": NUMBERS,
    "probe_segment": SEGMENTS,
    "probe_frame": FRAMES,
    "probe_demo": DEMO,
}
HEADS = {name: (settings[0],) if name != "attentive" else settings for name, settings in UTTERANCE_HEADS.items()}
"""Pooling stays what the config says, since segments need frames with every head."""


def heads_of(config: ProbeConfig) -> Mapping[str, tuple[str, ...]]:
    """Those of `HEADS` that fit: a frame by itself leaves nothing to join."""
    return {name: settings for name, settings in HEADS.items() if config.level != "frame" or name not in NEEDS_FRAMES}
