"""The probe that a config asks for: of classes or of numbers, of utterances or of segments."""

from speechssl.task import Task

from .classify import ClassProbe
from .config import ProbeConfig
from .regress import NumberProbe
from .segments import SegmentProbe


def make_probe(config: ProbeConfig) -> Task:
    """Makes the task."""
    inner = NumberProbe(config) if config.kind == "regression" else ClassProbe(config)
    return SegmentProbe(inner) if config.level == "segment" else inner


TASK = make_probe
