"""The probe that a config asks for: of classes or of numbers, of utterances, segments or frames."""

from speechssl.task import Task

from .classify import ClassProbe
from .config import ProbeConfig
from .frame_classes import FrameClassProbe
from .frame_numbers import FrameNumberProbe
from .regress import NumberProbe
from .segments import SegmentProbe


def make_probe(config: ProbeConfig) -> Task:
    """Makes the task."""
    regression = config.kind == "regression"
    if config.level == "frame":
        return FrameNumberProbe(NumberProbe(config)) if regression else FrameClassProbe(ClassProbe(config))
    inner = NumberProbe(config) if regression else ClassProbe(config)
    return SegmentProbe(inner) if config.level == "segment" else inner


TASK = make_probe
