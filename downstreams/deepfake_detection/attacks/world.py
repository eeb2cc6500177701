"""Copy synthesis by WORLD: fundamental frequency, spectral envelope and aperiodicity, and back.

Paper: Morise et al. 2016, "WORLD: a vocoder-based high-quality speech synthesis system".
"""

import numpy as np
import torch
from torch import Tensor

from downstreams.deepfake_detection.attacks import SAMPLE_RATE, Attack, Source, Synthesiser
from speechssl.errors import SpeechsslError

FRAME_PERIODS = (5.0, 10.0)  # ms, one per variant


def _load() -> Synthesiser:
    try:
        import pyworld
    except ImportError as error:
        raise SpeechsslError("WORLD needs the package 'pyworld': pip install 'speechssl[vc]'.") from error

    def synthesise(source: Source) -> tuple[Tensor, int]:
        x = source.waveform.numpy().astype(np.float64)
        period = FRAME_PERIODS[source.variant]
        f0, times = pyworld.dio(x, SAMPLE_RATE, frame_period=period)
        f0 = pyworld.stonemask(x, f0, times, SAMPLE_RATE)
        envelope = pyworld.cheaptrick(x, f0, times, SAMPLE_RATE)
        aperiodicity = pyworld.d4c(x, f0, times, SAMPLE_RATE)
        y = pyworld.synthesize(f0, envelope, aperiodicity, SAMPLE_RATE, frame_period=period)
        return torch.from_numpy(y.astype(np.float32)), SAMPLE_RATE

    return synthesise


ATTACKS = (Attack("world", "source-filter vocoder", "copy", "pyworld", _load, variants=len(FRAME_PERIODS)),)
