"""Speech enhancement: a mask that lets speech through, PESQ and STOI."""

from typing_extensions import override

from speechssl.separation.task import MaskingTask
from speechssl.types import Utterance


class SpeechEnhancement(MaskingTask):
    """SUPERB's speech enhancement."""

    name = "speech_enhancement"
    kind = "noise"
    outputs = ("speech",)

    @override
    def sources_of(self, utterance: Utterance) -> tuple[str, ...]:
        clean = utterance.labels.get("clean")
        return (str(clean),) if clean else ()


TASK = SpeechEnhancement
