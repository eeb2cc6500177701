"""Copy synthesis by Griffin and Lim: the magnitude spectrum kept, the phase made up by iteration.

Variant 0 keeps the whole spectrum, variant 1 only 80 mel bands of it, as a text-to-speech system would hand over.

Paper: Griffin and Lim 1984, "Signal estimation from modified short-time Fourier transform"; with momentum: Perraudin et
al. 2013.
"""

import torch
import torchaudio.functional as AF
from torch import Tensor

from downstreams.deepfake_detection.attacks import SAMPLE_RATE, Attack, Source, Synthesiser
from speechssl.vocoder import load_vocoder, log_mel, synthesise

WINDOW, HOP, ITERATIONS = 1024, 256, 32  # samples, samples


def _load() -> Synthesiser:
    window = torch.hann_window(WINDOW)
    vocoder = load_vocoder("griffin_lim")

    def from_magnitude(source: Source) -> tuple[Tensor, int]:
        spectrum = torch.stft(source.waveform, WINDOW, HOP, window=window, return_complex=True).abs()  # (F, T)
        rebuilt = AF.griffinlim(
            spectrum, window, WINDOW, HOP, WINDOW, 1.0, ITERATIONS, 0.99, source.waveform.numel(), rand_init=False
        )
        return rebuilt, SAMPLE_RATE

    def from_mel(source: Source) -> tuple[Tensor, int]:
        frames = log_mel(source.waveform[None], SAMPLE_RATE, vocoder.mel)[0]
        return synthesise(vocoder, frames), vocoder.mel.sample_rate

    return lambda source: (from_magnitude, from_mel)[source.variant](source)


ATTACKS = (Attack("griffin_lim", "phase reconstruction", "copy", "torchaudio", _load, variants=2),)
