"""The one format of prepared audio: 16 kHz mono FLAC of 16 bits. Imports no torch, since workers start it afresh."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000  # Hz


def write_flac(path: Path, waveform: npt.NDArray[np.float32]) -> int:
    """Writes (S,) in [-1, 1] and returns S; a file that exists is whole, so that an interrupted run can go on."""
    import soundfile

    partial = path.with_name(path.name + ".partial")
    soundfile.write(partial, waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    partial.replace(path)
    return len(waveform)
