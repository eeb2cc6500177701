"""Copy synthesis by Griffin and Lim: 80 mel bands kept, as a text-to-speech system would hand over, the phase made up.

Paper: Griffin and Lim 1984, "Signal estimation from modified short-time Fourier transform"; with momentum: Perraudin et
al. 2013.
"""

from torch import Tensor

from downstreams.deepfake_detection.attacks import SAMPLE_RATE, Attack, Source, Synthesiser
from speechssl.vocoder import log_mel, synthesise
from speechssl.vocoder.griffin_lim import GriffinLim

ITERATIONS = (32, 16)  # one per variant


def _load() -> Synthesiser:
    vocoders = [GriffinLim(iterations=n) for n in ITERATIONS]

    def run(source: Source) -> tuple[Tensor, int]:
        vocoder = vocoders[source.variant]
        frames = log_mel(source.waveform[None], SAMPLE_RATE, vocoder.mel)[0]
        return synthesise(vocoder, frames), vocoder.mel.sample_rate

    return run


ATTACKS = (Attack("griffin_lim", "phase reconstruction", "copy", "torchaudio", _load, variants=len(ITERATIONS)),)
