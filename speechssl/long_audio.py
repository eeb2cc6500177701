"""Long audio in constant memory: windows of chunk and context, each read, computed and handed on by itself.

A window is a chunk of frames with `context` on both sides; the frames of the context are dropped. Windows begin at
multiples of the hop, so the pieces join to exactly the frames that the whole file has. Statistics of the whole
utterance are gathered first (`speechssl.utterance_statistics`; here those of a spectral baseline's channels). What is
left of the difference to the whole file is what lies beyond the context: nothing where a frame sees no further.
S samples, T frames, D width, C channels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from speechssl.audio import audio_info, read_audio, stretch
from speechssl.errors import AudioError, ConfigError, SpeechsslError
from speechssl.forward import Precision, evaluating, forward_batch
from speechssl.frontend.log_mel import standardize_frames
from speechssl.frontend.spectral import SpectralUpstream
from speechssl.moments import Moments
from speechssl.types import HiddenStates, Utterance
from speechssl.upstream import Upstream
from speechssl.utterance_statistics import gather_statistics

CONTEXT = 5.0
"""Seconds on both sides of a chunk; docs/extract.md has what more or less of it costs."""
ALIGNED = 8
"""Windows begin at multiples of this many frames, for upstreams that halve their frame rate inside."""
MARGIN = 0.1
"""Seconds read on both sides of a stretch that is resampled, far beyond the filter's own reach."""
LONGEST_FIELD = 64
"""Hops within which the first frame must be complete."""


class Audio:
    """The samples of an utterance at a sample rate, read in stretches that equal those of the whole resampled file."""

    def __init__(self, utterance: Utterance, sample_rate: int) -> None:
        """
        Raises:
            AudioError: a file that can't be read, or only as a whole.
        """
        self.path = Path(utterance.path)
        self.sample_rate = sample_rate
        info = audio_info(self.path)
        _check_seekable(self.path)
        self.source_rate = info.sample_rate
        self.first, self.count = stretch(
            self.path, utterance.start, utterance.duration, self.source_rate, info.frames
        )  # samples of the file
        common = math.gcd(self.source_rate, sample_rate)
        self._step, self._source_step = sample_rate // common, self.source_rate // common  # of equal duration
        self._margin = math.ceil(MARGIN * common)  # steps
        tail = max(self.count // self._source_step - 2 * self._margin, 0)
        self.samples = self.count
        if self._step != self._source_step:
            self.samples = tail * self._step + self._read(tail, None).numel()
        """At `sample_rate`."""

    def read(self, start: int, stop: int) -> Tensor:
        """Returns samples `start` to `stop`, (stop - start,)."""
        if self._step == self._source_step:
            return self._read(start, stop)
        low = max(start // self._step - self._margin, 0)
        samples = self._read(low, -(-stop // self._step) + self._margin)
        return samples[start - low * self._step : stop - low * self._step]

    def _read(self, low: int, high: int | None) -> Tensor:
        """From step `low` to step `high`, or to the end."""
        first = low * self._source_step
        last = self.count if high is None else min(high * self._source_step, self.count)
        return read_audio(
            self.path,
            sample_rate=self.sample_rate,
            start=(self.first + first) / self.source_rate,
            duration=(last - first) / self.source_rate,
        )


@dataclass(frozen=True)
class Window:
    """Frames `first` to `last` of the file, computed from samples `start` to `stop`, whose own frames begin earlier."""

    first: int
    last: int
    skipped: int
    """Frames of context before `first`."""
    start: int
    stop: int


def plan_windows(upstream: Upstream, samples: int, *, chunk: float, context: float) -> list[Window]:
    """Lays out the windows of a file.

    Args:
        samples: of the whole file, at the upstream's sample rate.
        chunk: seconds of new frames per window.
        context: seconds on each side.

    Raises:
        ConfigError: settings that are not possible, or an upstream whose frames don't lie on a grid of samples.
    """
    hop = check_chunks(upstream, chunk, context)
    size = _aligned(chunk * upstream.frame_rate, math.floor)
    margin = _aligned(context * upstream.frame_rate, math.ceil) if context else 0
    field = _first_frame(upstream, hop)
    frames = int(upstream.output_lengths(torch.tensor([samples])))
    windows, expected = [], []
    for first in range(0, frames, size):
        last = min(first + size, frames)
        begin, end = max(first - margin, 0), min(last + margin, frames)
        stop = samples if end == frames else (end - 1) * hop + field
        windows.append(Window(first, last, first - begin, begin * hop, stop))
        expected.append(end - begin)
    lengths = torch.tensor([w.stop - w.start for w in windows])
    if upstream.output_lengths(lengths).tolist() != expected:
        raise _no_grid(upstream)
    return windows


def count_frames(upstream: Upstream, utterance: Utterance) -> int:
    """Frames that the whole utterance has, from its length alone."""
    samples = Audio(utterance, upstream.sample_rate).samples
    return int(upstream.output_lengths(torch.tensor([samples])))


def extract_long(
    upstream: Upstream,
    utterance: Utterance,
    *,
    chunk: float,
    context: float = CONTEXT,
    layers: Sequence[int] | None = None,
    precision: Precision = "float32",
) -> Iterator[HiddenStates]:
    """Yields the features of a long file piece by piece; memory is that of one window, however long the file is.

    Statistics of the whole utterance are exact (the module docstring says which); attention sees the window only.

    Args:
        utterance: in a format that can be read from any point on.
        chunk: seconds per piece, taken down to a multiple of `ALIGNED` frames.
        context: seconds computed on both sides of it and dropped, taken up likewise.
        layers: which of the L+1 hidden states (negative counts from the end); None = all.
        precision: 'bf16' computes under autocast.

    Yields:
        features: `features[layer]` is (T of the piece, D) float32 on the CPU; joined, the T of the whole file.

    Raises:
        AudioError: a bad file, or one shorter than a frame.
        ConfigError: settings that are not possible with this upstream.
    """
    audio = Audio(utterance, upstream.sample_rate)
    windows = plan_windows(upstream, audio.samples, chunk=chunk, context=context)
    if not windows:
        raise AudioError(f"{utterance.path} is shorter than one frame of '{upstream.name}': leave it out.")
    compute = _Windows(upstream, audio, layers=layers, precision=precision)
    with evaluating(upstream):
        channels = None
        if isinstance(upstream, SpectralUpstream) and upstream.cmvn:
            channels = Moments()
            for window in windows:
                channels.add(next(iter(compute(window).values())))
        for window in windows:
            states = compute(window)
            if channels is not None:
                deviation = channels.variance(correction=1).sqrt()
                states = {k: standardize_frames(x, channels.mean, deviation) for k, x in states.items()}
            yield HiddenStates(states, len(upstream.hidden_sizes))


class _Windows:
    """Computes windows of one utterance."""

    def __init__(self, upstream: Upstream, audio: Audio, *, layers: Sequence[int] | None, precision: Precision) -> None:
        self.upstream, self.audio, self.layers, self.precision = upstream, audio, layers, precision
        self.statistics = gather_statistics(upstream, audio.read, audio.samples)

    def __call__(self, window: Window) -> dict[int, Tensor]:
        """Returns layer -> (T of the chunk, D)."""
        waveform = self.statistics.normalized(self.audio.read(window.start, window.stop))[None]
        with self.statistics.applied():
            lengths = torch.tensor([waveform.size(1)])
            states, _ = forward_batch(self.upstream, waveform, lengths, self.layers, self.precision)
        begin, end = window.skipped, window.skipped + window.last - window.first
        # A copy: a slice would keep the context alive, and could not take part in autograd.
        return {k: x[0, begin:end].to(torch.float32, copy=True) for k, x in states.items()}


def check_chunks(upstream: Upstream, chunk: float, context: float) -> int:
    """Returns the samples from frame to frame.

    Raises:
        ConfigError: settings that are not possible, or no whole number of samples.
    """
    if not chunk > 0 or not context >= 0:
        raise ConfigError(f"`chunk` must be positive and `context` >= 0 seconds, but are {chunk} and {context}.")
    hop = round(upstream.sample_rate / upstream.frame_rate)
    if abs(hop * upstream.frame_rate - upstream.sample_rate) > 1e-6 * upstream.sample_rate:
        raise _no_grid(upstream)
    if chunk * upstream.frame_rate < ALIGNED:
        least = ALIGNED / upstream.frame_rate
        raise ConfigError(f"`chunk` must be at least {least:g} s ({ALIGNED} frames), but is {chunk:g} s.")
    return hop


def _aligned(frames: float, rounded: Callable[[float], int]) -> int:
    return ALIGNED * rounded(round(frames, 6) / ALIGNED)


def _first_frame(upstream: Upstream, hop: int) -> int:
    """Samples that one frame needs."""
    lengths = torch.arange(1, LONGEST_FIELD * hop + 1)
    enough = torch.nonzero(upstream.output_lengths(lengths) >= 1)
    if not len(enough):
        raise _no_grid(upstream)
    return int(lengths[enough[0]])


def _no_grid(upstream: Upstream) -> SpeechsslError:
    return ConfigError(
        f"'{upstream.name}' can't be extracted in chunks, because its frames ({upstream.frame_rate:g} Hz) don't lie a "
        f"whole number of samples apart, each a shift of the last: leave out `chunk`, or split the audio."
    )


def _check_seekable(path: Path) -> None:
    import soundfile

    try:
        with soundfile.SoundFile(str(path)) as file:
            seekable = bool(file.seekable())
    except (soundfile.LibsndfileError, TypeError):
        seekable = False
    if not seekable:
        raise AudioError(
            f"{path} can only be decoded as a whole, so it can't be extracted in chunks: convert it to WAV or FLAC."
        )
