"""The task interface: what a downstream task must say so that the one runner can train and measure it.

The runner owns what is the same for every task: cached frozen features, the weighted sum over layers, batches,
optimisation, choice of the best checkpoint on dev, the final evaluation on test, seeds and result files. A task says
which utterances, which head, which loss and which metric. B batch, T frames, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from speechssl.adapt.config import AdaptConfig
from speechssl.answers import answer_each, tabulate
from speechssl.data.corpus import Corpus
from speechssl.data.seeds import derive_seed
from speechssl.errors import ConfigError
from speechssl.featurizer.config import FeatureConfig
from speechssl.result import Evaluation
from speechssl.types import LossOutput, Utterance

__all__ = ["FeatureConfig", "Task", "TaskConfig", "TaskData", "TrainConfig", "take_share"]


@dataclass(frozen=True)
class TrainConfig:
    """How the runner trains the head."""

    steps: int = 1000
    batch_seconds: float = 60.0
    """Seconds of audio per batch (padding included); batches hold utterances of like duration."""
    max_batch_size: int | None = None
    """Most utterances per batch; None = as many as fit into `batch_seconds`."""
    optimizer: Literal["adam", "adamw", "nadam"] = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    clip_norm: float = 1.0
    evaluate_every: int = 100
    """Steps between evaluations on dev."""
    precision: Literal["float32", "bf16"] = "float32"
    max_duration: float | None = None
    """Seconds; longer training utterances are cropped at random (the count is logged). None = no crop."""

    def __post_init__(self) -> None:
        for name in ("batch_seconds", "learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"`train.{name}` must be above 0, but is {getattr(self, name)}.")
        if self.steps < 0:
            raise ConfigError(f"`train.steps` must be 0 (nothing is trained) or more, but is {self.steps}.")
        if self.evaluate_every < 1:
            raise ConfigError(f"`train.evaluate_every` must be 1 or more, but is {self.evaluate_every}.")


@dataclass(frozen=True)
class TaskConfig:
    """What every task's config begins with; a task's own `Config` inherits from it and adds fields."""

    train: TrainConfig = field(default_factory=TrainConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    """What of the upstream is trained with the head; 'frozen' = nothing, and features are computed once."""
    subset: float = 1.0
    """Share of the utterances of each split, chosen by a hash of their ids, for a quick look."""

    def __post_init__(self) -> None:
        features = self.features
        if not 0.0 < self.subset <= 1.0:
            raise ConfigError(f"`subset` must be above 0 and at most 1, but is {self.subset}.")
        if features.crops < 0 or (features.crops > 0 and self.train.max_duration is None):
            raise ConfigError(
                f"`features.crops` must be 0, or the number of crops of `train.max_duration` seconds, but is "
                f"{features.crops} with `train.max_duration={self.train.max_duration}`."
            )
        if features.pooling == "mean" and self.train.max_duration is not None and features.crops == 0:
            raise ConfigError(
                "`features.pooling=mean` leaves no frames to cut `train.max_duration` from: set `features.crops`, or "
                "`train.max_duration=null`."
            )


@dataclass(frozen=True)
class TaskData:
    """The utterances of each split, each with the labels that the task needs."""

    splits: Mapping[str, Sequence[Utterance]]
    """'train', 'dev', 'test'. Every utterance whose features are needed is in one of them, exactly once per split."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the task wants to keep (vocabulary, trials, ...), owned and typed by the task."""


def take_share(data: TaskData, share: float) -> TaskData:
    """A share of the utterances of each split (at least two): the same ones on every machine, in the same order."""
    if share == 1.0:
        return data
    splits = {}
    for split, utterances in data.splits.items():
        ranked = sorted(utterances, key=lambda u: derive_seed("subset", u.id))
        kept = {u.id for u in ranked[: max(2, round(share * len(utterances)))]}
        splits[split] = [u for u in utterances if u.id in kept]
    return replace(data, splits=splits)


class Task(ABC):
    """One downstream task. A new task is a folder with `config.py` (PRESETS) and `task.py` (TASK = its subclass)."""

    name: ClassVar[str]
    metric: str
    """Primary metric, a key of every Evaluation.metrics that `evaluate` returns for dev and test alike."""
    higher_is_better: bool = False
    labels_whole: ClassVar[bool] = False
    """Whether labels are of whole utterances, so that they stay true where audio is delayed, padded or trimmed; such a
    task's runs can be tested under disturbances (`speechssl.robustness`)."""
    about: str = ""
    """What this one predicts, where a task may predict anything; part of the name of its results."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def prepare(self, corpus: Corpus) -> TaskData:
        """Reads (and where needed first makes, once, below corpus.root) the task's data."""

    @abstractmethod
    def build_head(self, size: int, frame_rate: float, data: TaskData) -> nn.Module:
        """Builds the head for (B, T, size) features at `frame_rate` Hz; initialised by torch's (seeded) generator."""

    @abstractmethod
    def loss(  # noqa: PLR0917  a batch is six things
        self,
        head: nn.Module,
        features: Tensor,
        lengths: Tensor,
        utterances: Sequence[Utterance],
        data: TaskData,
        generator: torch.Generator,
    ) -> LossOutput:
        """The training loss of a batch.

        Args:
            features: (B, T, D) weighted sum of the layers, or (B, D) with pooling 'mean'.
            lengths: valid frames, (B,) int64.
            utterances: the B utterances, in order.
            generator: for augmentation and dropout of this step; derived from (seed, step).
        """

    @abstractmethod
    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance], data: TaskData
    ) -> list[Any]:
        """One prediction per utterance (text, embedding, score, ...), on the CPU; runs under no_grad and eval().

        Where there are several devices, a thread calls it for each of them, with a head of its own.
        """

    @abstractmethod
    def evaluate(
        self, head: nn.Module, predictions: Mapping[str, Any], data: TaskData, split: str, folder: Path
    ) -> Evaluation:
        """Measures the predictions of one split ('dev' or 'test').

        Args:
            predictions: utterance id -> what `predict` returned, for every utterance of the split.
            folder: the run folder, for artifacts (scores, audio); only for 'test' should anything be written.
        """

    def groups(self, data: TaskData) -> Sequence[str] | None:
        """The group of each training utterance, where every group is to be heard equally often; None = all are heard
        once in each pass."""
        del data
        return None

    def state(self, data: TaskData) -> Mapping[str, Any]:
        """What `infer` needs besides the weights (vocabulary, speakers, ...), as JSON that is kept with the run."""
        del data
        return {}

    def restore(self, state: Mapping[str, Any]) -> TaskData:
        """Makes the data that `build_head` and `infer` need from what `state` returned, without the corpus."""
        return TaskData(splits={}, extra=state)

    def infer(
        self,
        head: nn.Module,
        features: Mapping[str, Tensor],
        utterances: Sequence[Utterance],
        data: TaskData,
        folder: Path,
    ) -> Any:
        """Applies the trained task to a user's files; runs under no_grad and eval().

        Args:
            features: utterance id -> (T, D) weighted sum of the layers, or (D,) with pooling 'mean'. Those of a few
                files at a time are held: ask in the order of `utterances`.
            utterances: files, or stretches of them, of which several may lie in one file.
            data: what `restore` returned.
            folder: where artifacts (audio, ...) go, if there are any; may not exist yet.

        Returns:
            Anything that JSON can hold; by default what `answer_each` makes of `answer`.
        """
        del folder
        return answer_each(utterances, lambda u: self.answer(head, features[u.id], u, data))

    def answer(self, head: nn.Module, features: Tensor, utterance: Utterance, data: TaskData) -> Any:
        """What is said of one file, or of a stretch of it, as JSON: by default what `predict` says, tensors as lists.

        Args:
            features: (T, D), or (D,) with pooling 'mean'.
            utterance: times in the answer are seconds of its file.
            data: what `restore` returned.
        """
        lengths = torch.tensor([features.size(0) if features.dim() == 2 else 1], device=features.device)
        prediction = self.predict(head, features[None], lengths, [utterance], data)[0]
        return prediction.tolist() if isinstance(prediction, Tensor) else prediction

    def table(self, found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
        """What `infer` found as a table for a terminal: its header and its rows, by default one or more per file."""
        return tabulate(found)
