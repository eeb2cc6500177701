"""Reads audio files: any format, sampling rate and number of channels in; mono float32 out.

Conventions: `waveform` is (S,) float32, nominally in [-1, 1] (float files may go beyond: nothing is clipped);
`sample_rate` Hz; times in seconds. libsndfile (soundfile) reads first, and only the part asked for; what it does not
know (G.722, MP4/M4A, WebM, ...) goes to FFmpeg through PyAV, where that is installed. A path may be that of a file
inside a .tar, see `speechssl.files.member_path`.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speechssl.errors import AudioError
from speechssl.files import open_binary, split_member

OVERRUN = 0.1
"""Seconds by which a requested stretch may pass the end of the file: manifests round, decoders trim."""
SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64"),
    *(".rf64", ".sph", ".nist", ".voc", ".g722", ".m4a", ".mp4", ".aac", ".webm", ".mka", ".wma", ".amr", ".spx"),
)
"""File names that count as audio when a folder is searched."""
_RAW_FORMATS = {".g722": "g722"}  # headerless, so FFmpeg can't guess them


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says."""

    frames: int
    """Samples per channel."""
    sample_rate: int
    channels: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.frames / self.sample_rate


def read_audio(
    path: str | Path, *, sample_rate: int | None = None, start: float = 0.0, duration: float | None = None
) -> Tensor:
    """Reads a stretch of an audio file as mono (the mean of its channels).

    Args:
        path: any format that libsndfile or (with the extra 'av') FFmpeg reads.
        sample_rate: Hz to resample to (soxr, 'HQ'); None = the file's own.
        start: seconds from the beginning of the file.
        duration: seconds; None = to the end of the file.

    Returns:
        (S,) float32, contiguous; S = duration · sample_rate up to rounding.

    Raises:
        AudioError: missing, a folder, unreadable, without samples, not finite, or shorter than the stretch asked for.
    """
    path = Path(path)
    _check_file(path)
    if start < 0 or (duration is not None and duration <= 0):
        raise AudioError(f"`start` must be >= 0 and `duration` > 0, but are {start} and {duration} for {path}.")
    samples, rate = _read_sndfile(path, start, duration)
    if samples is None:
        samples, rate = _read_av(path, start, duration)
    _check_samples(path, samples)
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    if sample_rate is not None and sample_rate != rate:
        import soxr

        mono = soxr.resample(mono, rate, sample_rate, quality="HQ")
    return torch.from_numpy(np.ascontiguousarray(mono, dtype=np.float32))


def audio_info(path: str | Path) -> AudioInfo:
    """Reads length, sampling rate and channels, from the header where there is one.

    Raises:
        AudioError: missing, a folder, unreadable, or without samples.
    """
    path = Path(path)
    _check_file(path)
    with _sndfile(path) as file:
        info = None if file is None else AudioInfo(file.frames, file.samplerate, file.channels)
    if info is None:
        samples, rate = _read_av(path, 0.0, None)
        info = AudioInfo(samples.shape[0], rate, samples.shape[1])
    if info.frames < 1:
        raise AudioError(f"{path} holds no samples: record or convert it again, or leave it out.")
    return info


def content_hash(path: str | Path) -> str:
    """A hash over the bytes of a file, read once per path, size and time of change.

    Raises:
        AudioError: missing or a folder.
    """
    path = Path(path)
    _check_file(path)
    member = split_member(path)
    status = (path if member is None else member[0]).stat()
    return _content_hash(str(path), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1_000_000)
def _content_hash(path: str, _mtime_ns: int, _size: int) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with _readable(Path(path)), open_binary(Path(path)) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_file(path: Path) -> None:
    member = split_member(path)
    if member is not None:
        path = member[0]
    if path.is_dir():
        raise AudioError(f"{path} is a folder, not an audio file: name the files in it.")
    if not path.exists():
        raise AudioError(f"The audio file {path} does not exist: check the path, or the manifest that names it.")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise AudioError(f"{path} may not be read by this user: change its permissions.") from error


@contextmanager
def _sndfile(path: Path) -> Iterator[Any]:
    """Yields an open soundfile.SoundFile, or None where libsndfile does not know the format."""
    import soundfile

    with _readable(path):
        opened = open_binary(path)
    with opened:
        try:
            file = soundfile.SoundFile(opened if split_member(path) else str(path))
        except (soundfile.LibsndfileError, TypeError):  # TypeError: soundfile takes .raw for headerless samples
            yield None
            return
        with file:
            yield file


def _read_sndfile(path: Path, start: float, duration: float | None) -> tuple[NDArray[np.float32] | None, int]:
    """Returns ((S, C) samples or None, Hz)."""
    import soundfile

    with _sndfile(path) as file:
        if file is None:
            return None, 0
        rate = int(file.samplerate)
        first, count = stretch(path, start, duration, rate, int(file.frames))
        try:
            file.seek(first)
            samples: NDArray[np.float32] = file.read(count, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise _unreadable(path, str(error)) from error
    if count > 0 and samples.shape[0] < count - math.ceil(OVERRUN * rate):
        raise AudioError(
            f"{path} breaks off after {(first + samples.shape[0]) / rate:.2f} s, its header says "
            f"{(first + count) / rate:.2f} s: fetch or convert it again."
        )
    return samples, rate


def _read_av(path: Path, start: float, duration: float | None) -> tuple[NDArray[np.float32], int]:
    """Returns ((S, C) samples, Hz), decoded from the beginning: seeking in such formats is not exact."""
    try:
        import av
    except ImportError as error:
        raise _unreadable(path, "libsndfile does not know it, and PyAV is not installed: pip install av") from error
    parts: list[NDArray[np.float32]] = []
    rate = 0
    try:
        source: Any = str(path) if split_member(path) is None else open_binary(path)
        with av.open(source, format=_RAW_FORMATS.get(path.suffix.lower())) as container:
            if not container.streams.audio:
                raise _unreadable(path, "it has no audio stream")
            resampler = av.AudioResampler(format="fltp")  # of the samples' type alone: rate and channels stay
            stream = container.streams.audio[0]
            for frame in container.decode(stream):
                rate = frame.sample_rate
                parts.extend(_planes(f) for f in resampler.resample(frame))
                if duration is not None and sum(p.shape[1] for p in parts) >= (start + duration) * rate:
                    break
            parts.extend(_planes(f) for f in resampler.resample(None) if f.samples)
    except (av.FFmpegError, ValueError, MemoryError) as error:
        raise _unreadable(path, str(error)) from error
    if not parts:
        raise AudioError(f"{path} holds no samples: record or convert it again, or leave it out.")
    samples = np.concatenate(parts, axis=1).T  # (S, C)
    first, count = stretch(path, start, duration, rate, samples.shape[0])
    return samples[first : first + count], rate


def _planes(frame: Any) -> NDArray[np.float32]:
    """Returns the (C, S) samples of an av.AudioFrame in format 'fltp'."""
    return np.asarray(frame.to_ndarray(), dtype=np.float32)


def stretch(path: Path, start: float, duration: float | None, rate: int, frames: int) -> tuple[int, int]:
    """Returns the first sample and the number of samples of a stretch, checked against the file's length.

    Args:
        start: seconds from the beginning of the file.
        duration: seconds; None = to the end of the file.
        rate: of the file, Hz.
        frames: samples per channel that the file holds.

    Raises:
        AudioError: the stretch passes the end by more than `OVERRUN`.
    """
    if frames < 1:
        raise AudioError(f"{path} holds no samples: record or convert it again, or leave it out.")
    first = round(start * rate)
    if first >= frames:
        raise AudioError(
            f"{path} is {frames / rate:.2f} s long, but should be read from {start:.2f} s on: mend the manifest."
        )
    if duration is None:
        return first, frames - first
    count = max(round(duration * rate), 1)
    if first + count > frames + math.ceil(OVERRUN * rate):
        raise AudioError(
            f"{path} is {frames / rate:.2f} s long, but should be read up to {start + duration:.2f} s: "
            "mend the manifest."
        )
    return first, min(count, frames - first)


def _check_samples(path: Path, samples: NDArray[np.float32]) -> None:
    if samples.shape[0] < 1:
        raise AudioError(f"{path} holds no samples: record or convert it again, or leave it out.")
    bad = int(samples.size - np.isfinite(samples).sum())
    if bad:
        raise AudioError(f"{path} holds {bad} samples that are NaN or infinite: convert it again, or leave it out.")


def _unreadable(path: Path, reason: str) -> AudioError:
    reason = " ".join(reason.split()).rstrip(".")
    with open_binary(path) as file:
        head = file.read(512)
    if not head:
        return AudioError(f"{path} is an empty file of 0 bytes: fetch or record it again, or leave it out.")
    if not any(byte < 9 or byte >= 127 for byte in head):
        return AudioError(f"{path} is a text file, not audio: name an audio file, or leave it out.")
    return AudioError(f"{path} can't be read as audio ({reason}): convert it to WAV or FLAC, or leave it out.")
