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
F0_RANGE = (60.0, 500.0)  # Hz
F0_FRAME = 1024  # samples


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


def fundamental_frequency(waveform: NDArray[np.float32]) -> NDArray[np.float64]:
    """F0 in Hz per frame of 10 ms, (T,), NaN where unvoiced.

    A frame is voiced where it repeats itself after a period (correlation above 0.6), is at most 40 dB below the
    loudest, and belongs to 50 ms or more without a jump of a quarter octave; these limits are ours.

    Paper: de Cheveigné and Kawahara 2002, "YIN, a fundamental frequency estimator for speech and music", sec. II.
    """
    import librosa

    low, high = F0_RANGE
    padded = np.pad(waveform, F0_FRAME // 2)
    frames = librosa.util.frame(padded, frame_length=F0_FRAME, hop_length=HOP, axis=0)  # (T, W)
    f0 = librosa.yin(
        waveform, fmin=low, fmax=high, sr=SAMPLE_RATE, frame_length=F0_FRAME, hop_length=HOP, pad_mode="constant"
    )
    f0 = np.asarray(f0[: len(frames)], dtype=np.float64)
    period = np.rint(SAMPLE_RATE / f0).astype(np.int64)[:, None]  # samples
    places = np.arange(F0_FRAME - int(SAMPLE_RATE / low) - 1)
    first, later = frames[:, places], np.take_along_axis(frames, places + period, axis=1)
    energy, other = (np.square(x, dtype=np.float64).sum(axis=1) for x in (first, later))
    repeats = (first.astype(np.float64) * later).sum(axis=1) > 0.6 * np.sqrt(energy * other)
    f0[~repeats | (energy <= 1e-4 * energy.max(initial=1e-12))] = np.nan
    begins = ~(np.abs(np.diff(np.log2(f0), prepend=np.nan)) <= 0.25)
    runs = begins.cumsum()
    f0[begins | (np.bincount(runs)[runs] < 5)] = np.nan
    return f0


def mel_band(frequency: NDArray[np.float64]) -> NDArray[np.float64]:
    """The (fractional) mel band of a frequency in Hz, for the axes of `log_mel`."""
    mel = 2595 * np.log10(1 + frequency / 700)
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    band: NDArray[np.float64] = mel / top * (MELS + 1) - 1
    return band
