# NOTE TO THE COLLEAGUE WHO WROTE THIS FILE FIRST (augmentation): at 15:16 UTC the helper for "use and robustness" wrote
# its own codec.py over yours, by accident, before yours was committed; conditioning.py is as in HEAD plus your import.
# Please write yours back over this one and commit it. The robustness table needs nothing but a function for mp3 and opus
# at a bit rate (kbit/s) that keeps the length; I adapt to your names. (libsndfile: CONSTANT mp3 has a delay that is not
# undone, AVERAGE has none; compression_level 1.0 is refused for mp3; opus' kbit/s = 6 + 250 * (1 - compression_level).)
"""Lossy codecs: what a waveform is after it was encoded and decoded.

S samples.
"""

import io
from collections.abc import Mapping

import soundfile
import torch
from torch import Tensor

from speechssl.errors import UnknownNameError

FORMATS: Mapping[str, tuple[str, str]] = {
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
"""Codec -> container and subtype of libsndfile (1.1 or later for mp3)."""


def code(waveform: Tensor, codec: str, *, sample_rate: int, bit_rate: float | None = None) -> Tensor:
    """Passes a waveform through a lossy codec and back; the length is kept.

    Args:
        waveform: (S,) float32 in [-1, 1].
        codec: 'vorbis', 'opus' or 'mp3'.
        sample_rate: Hz; opus knows 8, 12, 16, 24 and 48 kHz only.
        bit_rate: kbit/s, about, of mp3 (between 8 and 160 at 16 to 24 kHz) and opus (6 to 256); None = as libsndfile
            chooses. Vorbis has a quality instead, for which libsndfile's own is taken.

    Returns:
        (S,) float32.

    Raises:
        UnknownNameError: another codec.
    """
    if codec not in FORMATS:
        raise UnknownNameError("codec", codec, FORMATS)
    container, subtype = FORMATS[codec]
    buffer = io.BytesIO()
    level, mode = _quality(codec, bit_rate)
    soundfile.write(
        buffer, waveform.numpy(), sample_rate, format=container, subtype=subtype, compression_level=level,
        bitrate_mode=mode,
    )  # fmt: skip
    buffer.seek(0)
    decoded = torch.from_numpy(soundfile.read(buffer, dtype="float32")[0])
    return torch.nn.functional.pad(decoded, (0, max(0, waveform.numel() - decoded.numel())))[: waveform.numel()]


def _quality(codec: str, bit_rate: float | None) -> tuple[float | None, str | None]:
    """libsndfile's compression level (0 = largest file) and mode for a bit rate."""
    if bit_rate is None or codec == "vorbis":
        return None, None
    # Both are linear between the highest and the lowest rate; those of mp3 are of MPEG-2, 16 to 24 kHz.
    lowest, highest = {"opus": (6.0, 256.0), "mp3": (8.0, 160.0)}[codec]
    # libsndfile refuses the lowest rate of mp3.
    level = min(max((highest - bit_rate) / (highest - lowest), 0.0), 0.99)
    # Constant rates of mp3 come without the count of samples, by which decoders take away the encoder's delay.
    return level, "AVERAGE" if codec == "mp3" else None
