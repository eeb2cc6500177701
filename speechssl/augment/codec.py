"""Codecs: what a waveform is after it was encoded and decoded.

S samples.
"""

import io

import soundfile
import torch
import torchaudio.functional as AF
from torch import Tensor

from speechssl.errors import SpeechsslError, UnknownNameError

CODECS: dict[str, tuple[str, str]] = {
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "narrowband": ("WAV", "ULAW"),
}
"""Codec -> container and subtype of libsndfile (1.1 or later for mp3). 'narrowband' is telephony: sampled at 8 kHz, in
the 8 bits of G.711's mu-law."""
NARROWBAND = 8_000  # Hz
BIT_RATES = {"opus": (6.0, 256.0), "mp3": (8.0, 160.0)}
"""kbit/s at the compression 1 and 0, between which libsndfile goes evenly; of mp3 those of MPEG-2, at 16 to 24 kHz."""
MOST = 0.99
"""libsndfile refuses an mp3 of compression 1."""


def code(waveform: Tensor, codec: str, *, sample_rate: int, compression: float | None = None) -> Tensor:
    """Passes a waveform through a codec and back; length and delay are kept.

    Args:
        waveform: (S,) float32 in [-1, 1], on the CPU.
        codec: one of `CODECS`.
        sample_rate: Hz; opus knows 8, 12, 16, 24 and 48 kHz only.
        compression: from 0 (most bits) to 1 (fewest); None = as libsndfile chooses. Narrowband has one rate only.

    Returns:
        (S,) float32.

    Raises:
        UnknownNameError: another codec.
        SpeechsslError: a compression out of range.
    """
    if codec not in CODECS:
        raise UnknownNameError("codec", codec, CODECS)
    if compression is not None and not 0.0 <= compression <= 1.0:
        raise SpeechsslError(f"`compression` must lie within 0 and 1, but is {compression}.")
    if codec == "narrowband":
        narrow = _through(AF.resample(waveform, sample_rate, NARROWBAND), codec, NARROWBAND, None)
        return _fit(AF.resample(narrow, NARROWBAND, sample_rate), waveform.numel())
    return _fit(_through(waveform, codec, sample_rate, compression), waveform.numel())


def compression_for(codec: str, bit_rate: float) -> float:
    """The compression that gives about `bit_rate` kbit/s of opus or mp3."""
    least, most = BIT_RATES[codec]
    return min(max((most - bit_rate) / (most - least), 0.0), 1.0)


def _through(waveform: Tensor, codec: str, sample_rate: int, compression: float | None) -> Tensor:
    container, subtype = CODECS[codec]
    buffer = io.BytesIO()
    soundfile.write(
        buffer,
        waveform.numpy(),
        sample_rate,
        format=container,
        subtype=subtype,
        compression_level=None if compression is None else min(compression, MOST),
        # Constant rates come without the count of samples, by which decoders take the encoder's delay away.
        bitrate_mode="AVERAGE" if codec == "mp3" and compression is not None else None,
    )
    buffer.seek(0)
    return torch.from_numpy(soundfile.read(buffer, dtype="float32")[0])


def _fit(waveform: Tensor, samples: int) -> Tensor:
    return torch.nn.functional.pad(waveform, (0, max(0, samples - waveform.numel())))[:samples]
