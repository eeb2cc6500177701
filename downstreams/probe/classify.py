"""The probe that tells classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn
from typing_extensions import override

from speechssl.classification.data import Classes, choose_labelled, make_classes
from speechssl.classification.task import Classification
from speechssl.data.corpus import Corpus
from speechssl.task import TaskData
from speechssl.types import Utterance

from .config import ProbeConfig, about
from .data import check_groups, read_everything
from .head import StandardisedHead


class ClassProbe(Classification):
    """A classification of any labels."""

    name = "probe"
    config: ProbeConfig

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__(config)
        self.about = about(config)

    @override
    def prepare(self, corpus: Corpus) -> TaskData:
        return self.gather(read_everything(corpus, self.config), corpus.root)

    def gather(self, everything: Mapping[str, Sequence[Utterance]], root: Path) -> TaskData:
        """Chooses what is labelled, and finds the classes."""
        splits = choose_labelled(everything, self.config, root, {} if self.config.fold else self.config.splits)
        check_groups(splits, self.config, root)
        classes = make_classes(splits["train"], self.config.fields)
        return TaskData(splits, {"classes": classes, "weights": self._weights(splits["train"], classes)})

    @override
    def build_head(self, size: int, frame_rate: float, data: TaskData) -> nn.Module:
        config = self.config
        if not config.standardise:
            return super().build_head(size, frame_rate, data)
        classes: Classes = data.extra["classes"]
        return StandardisedHead(config.head, size, len(classes), hidden_size=config.hidden_size, dropout=config.dropout)
