"""Reading audio: formats, rates, stretches, and every way a file can be bad."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechssl.audio import audio_info, content_hash, read_audio
from speechssl.errors import AudioError

RATE = 16_000


def tone(seconds: float = 1.0, rate: int = RATE, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = RATE, **how: str) -> Path:
    soundfile.write(path, samples, rate, **how)
    return path


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_every_sample_type_becomes_float32_in_unit_range(tmp_path: Path, subtype: str) -> None:
    waveform = read_audio(write(tmp_path / "a.wav", tone(), subtype=subtype))
    assert waveform.dtype == torch.float32 and waveform.shape == (RATE,)
    atol = {"PCM_U8": 1e-2, "ULAW": 2e-2}.get(subtype, 1e-4)
    torch.testing.assert_close(waveform, torch.from_numpy(tone()), atol=atol, rtol=0)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3", "aiff", "au", "caf"])
def test_libsndfile_formats_keep_length_and_pitch(tmp_path: Path, suffix: str) -> None:
    waveform = read_audio(write(tmp_path / f"a.{suffix}", tone()))
    assert abs(waveform.numel() - RATE) <= 1152  # an MP3 frame
    assert abs(int(torch.fft.rfft(waveform).abs().argmax()) * RATE / waveform.numel() - 440) < 2


FFMPEG_ONLY = [("g722", "g722", 64), ("m4a", "aac", 2048), ("webm", "libopus", 960)]


@pytest.mark.parametrize(("suffix", "codec", "slack"), FFMPEG_ONLY)
def test_pyav_reads_what_libsndfile_can_not(tmp_path: Path, suffix: str, codec: str, slack: int) -> None:
    av = pytest.importorskip("av")
    path, rate = tmp_path / f"a.{suffix}", 48_000 if codec == "libopus" else RATE
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        samples = (tone(rate=rate) * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = rate
        frames = av.AudioResampler(format=stream.format.name, frame_size=stream.frame_size or None)
        for part in [*frames.resample(frame), *frames.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    waveform = read_audio(path, sample_rate=RATE)
    assert abs(waveform.numel() - RATE) <= slack
    assert abs(int(torch.fft.rfft(waveform).abs().argmax()) * RATE / waveform.numel() - 440) < 2
    assert audio_info(path).sample_rate == rate
    part = read_audio(path, sample_rate=RATE, start=0.25, duration=0.5)
    torch.testing.assert_close(part[400:-400], waveform[4400:11600], atol=1e-3, rtol=0)


def test_stereo_becomes_the_mean_of_its_channels(tmp_path: Path) -> None:
    left, right = tone(hz=300.0), tone(hz=500.0)
    path = write(tmp_path / "a.wav", np.stack([left, right], axis=1), subtype="FLOAT")
    torch.testing.assert_close(read_audio(path), torch.from_numpy((left + right) / 2), atol=1e-7, rtol=0)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_resampling_keeps_a_tone(tmp_path: Path, rate: int) -> None:
    waveform = read_audio(write(tmp_path / "a.wav", tone(rate=rate), rate, subtype="FLOAT"), sample_rate=RATE)
    assert abs(waveform.numel() - RATE) <= 1
    inner = slice(800, RATE - 800)  # the filter rings at the edges
    torch.testing.assert_close(waveform[inner], torch.from_numpy(tone())[inner], atol=1e-3, rtol=0)


def test_a_stretch_equals_the_slice_of_the_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", np.random.default_rng(0).uniform(-1, 1, RATE).astype(np.float32))
    whole = read_audio(path)
    assert torch.equal(read_audio(path, start=0.25, duration=0.5), whole[4000:12000])
    assert torch.equal(read_audio(path, start=0.9), whole[14400:])
    assert torch.equal(read_audio(path, start=0.9, duration=0.15), whole[14400:])  # manifests round


def test_info_reads_the_header(tmp_path: Path) -> None:
    info = audio_info(write(tmp_path / "a.wav", np.zeros((4410, 2)), 44_100))
    assert (info.frames, info.sample_rate, info.channels, info.duration) == (4410, 44_100, 2, 0.1)


def test_content_hash_follows_content_and_not_name(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.wav", tone()), write(tmp_path / "b.wav", tone())
    before = content_hash(a)
    assert before == content_hash(b)
    write(a, tone(hz=441.0))
    assert content_hash(a) != before


def _nan(path: Path) -> None:
    write(path, np.array([0.0, np.nan, np.inf, 0.0], dtype=np.float32), subtype="FLOAT")


BAD = {
    "missing": (lambda p: None, "does not exist"),
    "folder": (lambda p: p.mkdir(), "is a folder"),
    "zero bytes": (lambda p: p.write_bytes(b""), "empty file"),
    "text": (lambda p: p.write_text("these are words, not samples\n" * 40), "is a text file"),
    "noise bytes": (lambda p: p.write_bytes(np.random.default_rng(0).bytes(20_000)), "can't be read"),
    "no samples": (lambda p: write(p, np.zeros(0, dtype=np.float32)), "no samples"),
    "not finite": (_nan, "2 samples that are NaN or infinite"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_sentence_that_names_it(tmp_path: Path, case: str) -> None:
    path = tmp_path / "bad.wav"
    make, says = BAD[case]
    make(path)
    with pytest.raises(AudioError) as caught:
        read_audio(path, sample_rate=RATE)
    message = str(caught.value)
    assert says in message and str(path) in message and "\n" not in message and message.endswith(".")


@pytest.mark.parametrize("case", [c for c in BAD if c != "not finite"])
def test_info_refuses_bad_files_too(tmp_path: Path, case: str) -> None:
    BAD[case][0](tmp_path / "bad.wav")
    with pytest.raises(AudioError, match=r"bad\.wav"):
        audio_info(tmp_path / "bad.wav")


OUTSIDE = [{"start": 1.0}, {"start": 0.5, "duration": 1.0}, {"start": -1.0}, {"duration": 0.0}]


@pytest.mark.parametrize("stretch", OUTSIDE)
def test_a_stretch_outside_the_file_is_refused(tmp_path: Path, stretch: dict[str, float]) -> None:
    path = write(tmp_path / "a.wav", tone())
    with pytest.raises(AudioError, match=r"a\.wav"):
        read_audio(path, **stretch)


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", np.random.default_rng(0).uniform(-1, 1, RATE))
    path.write_bytes(path.read_bytes()[:8000])
    with pytest.raises(AudioError, match=r"a\.flac"):
        read_audio(path)
