"""What real and spoofed speech go through alike, so that a detector must listen to the speech.

Sources differ in bandwidth, level, silence, duration and coding, and detectors live on such differences where they can:
in ASVspoof 2019 the leading silence alone gives a good detector (Müller et al. 2021, arXiv:2106.12914). So each
waveform, of either class, is freed of zeros at its ends, of its offset and of what lies outside one band, then trimmed
by one energy rule, cropped to one duration, laid over noise, passed through one codec and brought to one level. The
band comes first: an offset or a hum would count as loudness, and hence leak into where speech ends and how loud the
noise is. S samples.
"""

import torch
import torchaudio.functional as AF
from scipy.fft import next_fast_len
from torch import Tensor

from downstreams.deepfake_detection.config import ConditioningConfig
from speechssl.audio import audio_info, read_audio
from speechssl.augment import codec as codecs
from speechssl.types import Utterance

SAMPLE_RATE = 16_000  # Hz
FRAME, HOP = 320, 160  # samples of the energy rule: 20 and 10 ms
PAD = 0.1  # seconds of silence put before and after a recording, so that all begin and end alike for the filter
MARGIN = 0.4  # seconds that a segment is longer than the finished utterance, for the second trimming


def frame_levels(waveform: Tensor) -> Tensor:
    """The level of each 20 ms frame in dB, (S,) -> (T,); the rest beyond the last whole frame counts for nothing."""
    if waveform.numel() < FRAME:
        return torch.full((0,), -120.0)
    power = waveform.unfold(0, FRAME, HOP).square().mean(dim=1)  # (T,)
    return 10 * power.clamp(min=1e-12).log10()


def drop_zeros(waveform: Tensor) -> tuple[int, Tensor]:
    """Cuts samples that are exactly 0 off both ends, which nothing recorded: (S,) -> how many at the front, (S',)."""
    sound = waveform.nonzero()[:, 0]
    if not sound.numel():
        return 0, waveform[:0]
    return int(sound[0]), waveform[int(sound[0]) : int(sound[-1]) + 1]


def read_whole(utterance: Utterance) -> tuple[Tensor, int]:
    """(S,) at the sampling rate of its file, and that rate."""
    waveform = read_audio(utterance.path, start=utterance.start, duration=utterance.duration)
    return waveform, audio_info(utterance.path).sample_rate


def without_offset(waveform: Tensor, sample_rate: int) -> tuple[float, Tensor]:
    """Where the first sample of (S,) is that is not 0, seconds; all up to the last one, without its mean, at 16 kHz."""
    zeros, sound = drop_zeros(waveform)
    if not sound.numel():
        return 0.0, sound
    return zeros / sample_rate, AF.resample(sound - sound.double().mean().float(), sample_rate, SAMPLE_RATE)


def bare_sound(waveform: Tensor, sample_rate: int, config: ConditioningConfig) -> tuple[float, Tensor]:
    """What of a recording is measured and heard: without zeros at its ends, its offset and what the band leaves out.

    A hum rings where the recording ends: 30 dB below itself after 40 ms.

    Args:
        waveform: (S,) at `sample_rate`, that of the recording: resampled with its offset it would begin with a click.

    Returns:
        Where it begins in `waveform`, seconds, and (S',) at 16 kHz with PAD around it, S' = 0 where there are zeros
        only.
    """
    begin, sound = without_offset(waveform, sample_rate)
    if not sound.numel():
        return begin, sound
    sound = torch.nn.functional.pad(sound, (round(PAD * SAMPLE_RATE),) * 2)
    return begin, band_limit(sound, config.low_hz, config.high_hz)


def trim_silence(waveform: Tensor, threshold_db: float) -> Tensor:
    """Cuts what lies `threshold_db` below the loudest frame from both ends, (S,) -> (S',)."""
    first, last = speech_bounds(waveform, threshold_db)
    return waveform[first:last]


def speech_bounds(waveform: Tensor, threshold_db: float) -> tuple[int, int]:
    """The samples that `trim_silence` keeps: from the first on, before the last."""
    levels = frame_levels(waveform)
    if levels.numel() == 0 or not bool(levels.isfinite().all()):
        return 0, waveform.numel()
    active = (levels >= levels.max() - threshold_db).nonzero()[:, 0]
    return int(active[0]) * HOP, int(active[-1]) * HOP + FRAME


def crop(waveform: Tensor, seconds: float, generator: torch.Generator) -> Tensor:
    """A stretch of `seconds` from anywhere in the waveform, or all of it where it is shorter, (S,) -> (S',)."""
    start = _draw_start(waveform.numel(), seconds, generator)
    return waveform[start : start + round(seconds * SAMPLE_RATE)]


def _draw_start(samples: int, seconds: float, generator: torch.Generator) -> int:
    spare = samples - round(seconds * SAMPLE_RATE)
    return int(torch.randint(max(spare, 0) + 1, (), generator=generator))


def take_segment(waveform: Tensor, sample_rate: int, config: ConditioningConfig, generator: torch.Generator) -> Tensor:
    """The sound of a recording, trimmed and cropped to a little more than is needed, (S,) -> (S',) at 16 kHz."""
    _, sound = bare_sound(waveform, sample_rate, config)
    return crop(trim_silence(sound, config.trim_db), config.seconds + MARGIN, generator)


def finish(segment: Tensor, config: ConditioningConfig, generator: torch.Generator) -> Tensor | None:
    """Brings a segment at 16 kHz to the common form.

    Args:
        segment: (S,).
        generator: draws the crop and the noise.

    Returns:
        (seconds * 16 000,) float32, or None where there is too little speech.
    """
    found = cut_and_finish(segment, config, generator)
    return None if found is None else found[1]


def cut_and_finish(
    segment: Tensor, config: ConditioningConfig, generator: torch.Generator
) -> tuple[int, Tensor] | None:
    """What `finish` returns, and before it the sample of the segment that it begins with."""
    size = round(config.seconds * SAMPLE_RATE)
    if segment.numel() < size or not bool(segment.isfinite().all()):
        return None
    segment = band_limit(segment - segment.mean(), config.low_hz, config.high_hz)  # a vocoder may have an offset too
    first, last = speech_bounds(segment, config.trim_db)
    if last - first < size:
        return None
    first += _draw_start(last - first, config.seconds, generator)
    waveform = segment[first : first + size]
    rms = float(waveform.square().mean().sqrt())
    if rms < 1e-5:
        return None
    low, high = config.snr_db
    snr = low + (high - low) * float(torch.rand((), generator=generator))
    noise = torch.randn(size, generator=generator) * rms * 10 ** (-snr / 20)
    waveform = band_limit(waveform / rms + noise / rms, config.low_hz, config.high_hz)
    waveform = code(set_level(waveform, config.level_db), config.codec)[:size]
    return first, set_level(waveform - waveform.mean(), config.level_db)


def windows(waveform: Tensor, config: ConditioningConfig, *, hop: float | None = None) -> list[tuple[float, Tensor]]:
    """Brings a whole recording to the common form, stretch after stretch from the first speech to the last.

    An utterance of the set is one such stretch from a random place. Here the crop and the noise depend on the number of
    the stretch alone, so that neither the level of the recording nor the silence around the speech changes them. Less
    speech than one stretch is repeated from its beginning, as published systems do it with short files.

    Args:
        waveform: (S,) at 16 kHz, from `bare_sound`.
        hop: seconds from one stretch to the next; None = that of a stretch.

    Returns:
        (where it begins, seconds; (seconds * 16 000,)) for each stretch with enough speech, in order; none where there
        is none of it.
    """
    first, last = speech_bounds(waveform, config.trim_db)
    size, length = round(config.seconds * SAMPLE_RATE), round((config.seconds + MARGIN) * SAMPLE_RATE)
    if 0 < last - first < size:
        times = -(-(size + length) // (last - first))
        finished = finish(waveform[first:last].repeat(times), config, torch.Generator().manual_seed(0))
        return [] if finished is None else [(first / SAMPLE_RATE, finished)]
    starts = list(range(first, max(last - size, first) + 1, size if hop is None else round(hop * SAMPLE_RATE)))
    if last > starts[-1] + length:
        starts.append(last - length)
    found = []
    for number, start in enumerate(starts):
        segment = waveform[start : min(start + length, last)]
        cut = cut_and_finish(segment, config, torch.Generator().manual_seed(number))
        if cut is not None:
            found.append(((start + cut[0]) / SAMPLE_RATE, cut[1]))
    return sorted(found, key=lambda one: one[0])


def band_limit(waveform: Tensor, low_hz: float, high_hz: float) -> Tensor:
    """Keeps the frequencies within [low_hz, high_hz] and nothing else, without shifting phases, (S,) -> (S,)."""
    size = next_fast_len(waveform.numel(), real=True)  # that of a recording may be prime: seconds for a minute of it
    spectrum = torch.fft.rfft(waveform, n=size)
    frequencies = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    inside = (frequencies >= low_hz) & (frequencies <= high_hz)
    limited: Tensor = torch.fft.irfft(spectrum * inside, n=size)[: waveform.numel()]
    return limited


def set_level(waveform: Tensor, level_db: float) -> Tensor:
    """Scales (S,) to a root mean square of `level_db` dB below full scale."""
    scaled: Tensor = waveform * (10 ** (level_db / 20) / waveform.square().mean().sqrt().clamp(min=1e-12))
    return scaled


def code(waveform: Tensor, codec: str) -> Tensor:
    """Passes (S,) through a lossy codec and back; the length is kept."""
    return waveform if codec == "none" else codecs.code(waveform, codec, sample_rate=SAMPLE_RATE)
