"""The one format of prepared audio: 16 kHz mono FLAC of 16 bits. Imports no torch, since workers start it afresh."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from speechssl.files import replacing

SAMPLE_RATE = 16_000  # Hz


def write_flac(path: Path, waveform: npt.NDArray[np.float32], *, sample_rate: int = SAMPLE_RATE) -> int:
    """Writes (S,) in [-1, 1] and returns S; a file that exists is whole, so that an interrupted run can go on."""
    import soundfile

    buffer = io.BytesIO()  # libsndfile itself would not say that the disk is full
    soundfile.write(buffer, waveform, sample_rate, format="FLAC", subtype="PCM_16")
    with replacing(path, sync=False) as partial:
        partial.write_bytes(buffer.getvalue())
    return len(waveform)
