"""Writes what was converted: WAV or FLAC, never clipped, with a tag that says that it is synthetic."""

import io
from collections.abc import Mapping
from pathlib import Path

import soundfile
import torch
from torch import Tensor

import speechssl
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.files import replacing

FORMATS = {".wav": "WAV", ".flac": "FLAC"}
COMMENT = "Synthetic speech made by voice conversion: it is not a recording of the person whose voice it imitates."
TITLE = "Synthetic speech"


def check_output(path: str | Path) -> Path:
    """Sees that a file of this name can be written, before anything is computed.

    Raises:
        ConfigError: a suffix that is neither .wav nor .flac, or a folder.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"The output {path} must end in .wav or .flac: name it so.")
    if path.is_dir():
        raise ConfigError(f"The output {path} is a folder: name a file, such as {path / 'converted.flac'}.")
    return path


def write_speech(path: Path, waveform: Tensor, *, sample_rate: int) -> None:
    """Writes (S,) in [-1, 1] as 16 bits in the format of the suffix, tagged as synthetic.

    Raises:
        SpeechsslError: samples that are not finite, or that would be clipped.
    """
    if not bool(torch.isfinite(waveform).all()):
        raise SpeechsslError(f"The vocoder gave samples that are no numbers, so {path} is not written: train it again.")
    if waveform.numel() and float(waveform.abs().max()) > 1.0:
        raise SpeechsslError(f"{path} would be clipped: bring the waveform into [-1, 1] first.")
    buffer = io.BytesIO()  # libsndfile itself would not say that the disk is full
    kind = FORMATS[check_output(path).suffix.lower()]
    with soundfile.SoundFile(buffer, "w", samplerate=sample_rate, channels=1, format=kind, subtype="PCM_16") as file:
        file.title = TITLE
        file.software = f"speechssl {speechssl.__version__}"
        file.comment = COMMENT
        file.write(waveform.numpy())
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, sync=False) as partial:
        partial.write_bytes(buffer.getvalue())


def read_tags(path: str | Path) -> Mapping[str, str]:
    """The tags of an audio file: 'title', 'software', 'comment', ..."""
    with soundfile.SoundFile(str(path)) as file:
        return dict(file.copy_metadata())
