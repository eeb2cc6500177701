"""What probes of segments and of frames share: labels with times, and the head of another probe."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from typing_extensions import override

from speechssl.task import Task, TaskData

from .classify import ClassProbe
from .config import ProbeConfig
from .head import TimedHead
from .regress import NumberProbe


class PartProbe(Task):
    """Predicts what `inner` predicts of whole utterances, of parts of them."""

    name = "probe"
    config: ProbeConfig

    def __init__(self, inner: ClassProbe | NumberProbe) -> None:
        super().__init__(inner.config)
        self.inner = inner
        self.about = inner.about
        self.metric = inner.metric
        self.higher_is_better = inner.higher_is_better

    @override
    def state(self, data: TaskData) -> Mapping[str, Any]:
        return self.inner.state(data)

    @override
    def restore(self, state: Mapping[str, Any]) -> TaskData:
        return self.inner.restore(state)

    @override
    def build_head(self, size: int, frame_rate: float, data: TaskData) -> nn.Module:
        return TimedHead(self.inner.build_head(size, frame_rate, data), frame_rate)
