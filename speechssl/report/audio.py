"""Audio for a page: data URIs that browsers play, and log-mel spectrograms. S samples, M mel bands, T frames."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechssl.errors import AudioError

SAMPLE_RATE = 16_000  # Hz
MELS = 80
HOP = 160  # samples: 10 ms
MAX_SECONDS = 20.0


@dataclass(frozen=True)
class Clip:
    """A decoded example."""

    waveform: NDArray[np.float32]
    """(S,) at 16 kHz, in [-1, 1], at most 20 seconds."""
    uri: str
    """data:audio/mpeg;base64,…"""

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.waveform) / SAMPLE_RATE


def is_audio(value: str) -> bool:
    """Whether an example's value names an audio file."""
    from speechssl.audio import SUFFIXES

    return "\n" not in value and Path(value).suffix.lower() in SUFFIXES


def load_clip(path: Path) -> Clip:
    """Reads a file and encodes it as MP3, which Chromium, Firefox and Safari play from a data URI.

    Raises:
        AudioError: the file is missing or can't be decoded.
    """
    from speechssl.audio import read_audio

    waveform = read_audio(path, sample_rate=SAMPLE_RATE).numpy()
    waveform = np.clip(waveform[: int(MAX_SECONDS * SAMPLE_RATE)], -1.0, 1.0).astype(np.float32)
    return Clip(waveform, f"data:audio/mpeg;base64,{base64.b64encode(_mp3(waveform, path)).decode('ascii')}")


def _mp3(waveform: NDArray[np.float32], path: Path) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    try:
        soundfile.write(buffer, waveform, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.7)
    except (soundfile.LibsndfileError, ValueError) as error:
        raise AudioError(f"{path} can't be encoded as MP3 ({error}): install libsndfile 1.1 or newer.") from error
    return buffer.getvalue()


def log_mel(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-mel spectrogram in decibels below its own maximum, (M, T), floor -80 dB."""
    import torch
    import torchaudio

    transform = torchaudio.transforms.MelSpectrogram(
        SAMPLE_RATE, n_fft=512, win_length=400, hop_length=HOP, n_mels=MELS, mel_scale="htk"
    )
    power = transform(torch.from_numpy(waveform))
    decibel = 10 * torch.log10(power.clamp(min=1e-10))
    result: NDArray[np.float32] = (decibel - decibel.max()).clamp(min=-80.0).numpy()
    return result


def fundamental_frequency(waveform: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """F0 in Hz per frame of 10 ms, NaN where unvoiced; None where pyworld is not installed.

    Paper: Morise, Kawahara and Katayose 2009, "Fast and reliable F0 estimation method based on the period extraction
    of vocal fold vibration of singing voice and speech" (DIO).
    """
    try:
        import pyworld
    except ImportError:
        return None
    samples = waveform.astype(np.float64)
    f0, times = pyworld.dio(samples, SAMPLE_RATE, frame_period=10.0)
    refined: NDArray[np.float64] = pyworld.stonemask(samples, f0, times, SAMPLE_RATE)
    return np.where(refined > 0, refined, np.nan)


def mel_band(frequency: NDArray[np.float64]) -> NDArray[np.float64]:
    """The (fractional) mel band of a frequency in Hz, for the axes of `log_mel`."""
    mel = 2595 * np.log10(1 + frequency / 700)
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    band: NDArray[np.float64] = mel / top * (MELS + 1) - 1
    return band
