"""Decodes files of any kind to 16 kHz mono FLAC, in worker processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from speechssl.data.flac import SAMPLE_RATE, write_flac
from speechssl.errors import AudioError

Samples = npt.NDArray[np.float32]
SILENT = 0.003  # peak below which a clip holds no speech
PIECE = (4.0, 8.0)  # seconds; a long recording is cut at the quietest point in between
G722_BYTES = 8_000  # per second
_RAW: dict[str, dict[str, Any]] = {
    ".gsm": {"format": "RAW", "subtype": "GSM610", "samplerate": 8_000, "channels": 1},
    ".u8": {"format": "RAW", "subtype": "PCM_U8", "samplerate": 11_025, "channels": 1},
}
"""What the header of a file without header would say, by suffix."""


@dataclass(frozen=True)
class Job:
    """One file to decode: `target` is the path of the FLAC without its extension."""

    key: str
    file: Path
    target: Path
    segment: bool
    min_duration: float


@dataclass(frozen=True)
class Decoded:
    """What came of a job: pieces (path without folder, samples), or why there is none."""

    key: str
    pieces: tuple[tuple[str, int], ...] = ()
    skipped: str = ""
    """'short' or 'silent'."""
    error: str = ""
    scaled: bool = False
    """Whether the peak was over full scale and was brought down to it."""


def decode_all(jobs: Sequence[Job]) -> list[Decoded]:
    """Decodes some files; a file that can't be decoded gives a result with `error` instead of an exception."""
    results = []
    for job in jobs:
        try:
            results.append(_decode(job))
        except (AudioError, RuntimeError, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
                raise  # a full disk is not a bad file
            results.append(Decoded(job.key, error=f"{type(error).__name__}: {error}"))
    return results


def _decode(job: Job) -> Decoded:
    import soundfile

    whole = job.target.with_suffix(".flac")
    if not job.segment and whole.exists():
        return Decoded(job.key, ((whole.name, soundfile.info(whole).frames),))
    waveform, scaled = read_16k(job.file)
    if len(waveform) < job.min_duration * SAMPLE_RATE:
        return Decoded(job.key, skipped="short")
    if np.abs(waveform).max(initial=0.0) < SILENT:
        return Decoded(job.key, skipped="silent")
    if not job.segment:
        return Decoded(job.key, (_write(whole, waveform),), scaled=scaled)
    bounds = cut_points(waveform)
    pieces = [
        _write(whole.with_name(f"{job.target.name}-{i:03d}.flac"), waveform[start:end])
        for i, (start, end) in enumerate(bounds)
    ]
    return Decoded(job.key, tuple(pieces), scaled=scaled)


def _write(path: Path, waveform: Samples) -> tuple[str, int]:
    return path.name, write_flac(path, waveform)


def read_16k(file: Path) -> tuple[Samples, bool]:
    """Reads a file as 16 kHz mono; returns (S,) in [-1, 1], and whether it had to be scaled down to that.

    Raises:
        AudioError: values that are not finite.
    """
    import soxr

    waveform, rate = _read_g722(file) if file.suffix == ".g722" else _read(file)
    if not np.isfinite(waveform).all():
        raise AudioError("it holds values that are not finite")
    if rate != SAMPLE_RATE and len(waveform):
        waveform = soxr.resample(waveform, rate, SAMPLE_RATE, quality="HQ")
    peak = float(np.abs(waveform).max(initial=0.0))
    return (waveform / peak, True) if peak > 1.0 else (waveform, False)


def _read(file: Path) -> tuple[Samples, int]:
    import soundfile

    raw = _RAW.get(file.suffix, {})
    waveform, rate = soundfile.read(file, dtype="float32", always_2d=True, **raw)
    mono: Samples = waveform.astype(np.float32).mean(axis=1, dtype=np.float32)
    return mono, int(rate)


def _read_g722(file: Path) -> tuple[Samples, int]:
    try:
        import av
    except ImportError as error:
        raise AudioError("Reading G.722 needs the package av: pip install 'speechssl[av]'.") from error
    with av.open(str(file), format="g722") as container:
        frames: list[Any] = [frame.to_ndarray().ravel() for frame in container.decode(audio=0)]
    waveform: Samples = np.concatenate([np.zeros(0, np.int16), *frames]).astype(np.float32)
    return waveform / np.float32(32768), SAMPLE_RATE


def cut_points(waveform: Samples) -> list[tuple[int, int]]:
    """Cuts a long recording into pieces of 4 to 8 s at the quietest 50 ms; a rest under 1 s joins the last piece."""
    frame = SAMPLE_RATE // 20
    low, high = (int(bound * SAMPLE_RATE) for bound in PIECE)
    energy = np.add.reduceat(waveform.astype(np.float64) ** 2, np.arange(0, len(waveform), frame))
    bounds, start = [], 0
    while len(waveform) - start > high:
        window = energy[(start + low) // frame : (start + high) // frame]
        end = ((start + low) // frame + int(window.argmin())) * frame + frame // 2
        bounds.append((start, end))
        start = end
    if bounds and len(waveform) - start < SAMPLE_RATE:
        return [*bounds[:-1], (bounds[-1][0], len(waveform))]
    return [*bounds, (start, len(waveform))]


def header_duration(file: Path) -> float:
    """Seconds, without decoding; 0 where the header can't be read (decoding will say why)."""
    import soundfile

    if file.suffix == ".g722":
        return file.stat().st_size / G722_BYTES
    try:
        return float(soundfile.info(file, **_RAW.get(file.suffix, {})).duration)
    except (RuntimeError, OSError):
        return 0.0
