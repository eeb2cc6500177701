"""Source separation: masks in the best order of voices, improvement of the signal-to-distortion ratio."""

from typing_extensions import override

from speechssl.separation.task import MaskingTask
from speechssl.types import Utterance


class SourceSeparation(MaskingTask):
    """SUPERB's source separation."""

    name = "source_separation"
    kind = "voices"
    outputs = ("voice1", "voice2")

    @override
    def sources_of(self, utterance: Utterance) -> tuple[str, ...]:
        return tuple(map(str, utterance.labels.get("sources") or ()))


TASK = SourceSeparation
