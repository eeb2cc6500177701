"""Converts a user's files.

source ──► frames ──► another voice ──► vocoder ──► loudness ──► file, each step piece by piece.

T frames, D width, S samples.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from downstreams.voice_conversion.encoder import Encoder
from downstreams.voice_conversion.loudness import loudness as measure
from downstreams.voice_conversion.loudness import match_loudness, reference_loudness
from downstreams.voice_conversion.output import check_output, write_speech
from downstreams.voice_conversion.recording import Recording, read_recording
from downstreams.voice_conversion.voice import TargetVoice, is_voice, load_voice
from speechssl.conversion import Conversion, Loudness, Speech
from speechssl.errors import AudioError, ConfigError, SpeechsslError
from speechssl.inputs import resolve_items
from speechssl.progress import progress
from speechssl.vocoder import Vocoder
from speechssl.vocoder.chunks import WINDOW, synthesise_pieces

SHORTEST = 1.0
"""Seconds of a target's speech below which there is no voice to speak of."""
LOUDEST = 0.0
"""LUFS."""

Speak = Callable[[Iterable[Tensor], Tensor], Iterator[Tensor]]
"""Source frames and those of a voice -> frames for the vocoder, piece by piece."""


class FrameConverter:
    """The `speechssl.conversion.Converter` of this task."""

    def __init__(self, encoder: Encoder, speak: Speak, vocoder: Vocoder, *, trim: bool) -> None:
        """
        Args:
            trim: whether silence at both ends of a target's recordings is cut off.
        """
        self.encoder = encoder
        self.speak = speak
        self.vocoder = vocoder
        self.trim = trim
        self.sample_rate = vocoder.mel.sample_rate

    def voice(self, speech: Speech) -> TargetVoice:
        """Encodes a target's speech, or reads a saved voice, see `speechssl.conversion.Converter`."""
        paths = list(speech) if isinstance(speech, list | tuple) else [speech]
        saved = [path for path in paths if is_voice(path)]
        if saved and len(paths) > 1:
            raise ConfigError(f"{saved[0]} is a voice by itself: give it alone, or audio files alone.")
        if saved:
            voice = load_voice(cast(Path, saved[0]))
            voice.check(self.encoder.source, name=str(saved[0]))
            return voice
        return self._encode([self._listen(u) for u in resolve_items(speech)])

    def convert(
        self,
        source: str | Path,
        voice: TargetVoice | Speech,
        *,
        out: str | Path | None = None,
        loudness: Loudness = "source",
        sample_rate: int | None = None,
    ) -> Conversion:
        """Converts a file of any length, see `speechssl.conversion.Converter`."""
        path = None if out is None else check_output(out)
        if path is not None and path.exists() and Path(source).exists() and path.samefile(source):
            raise ConfigError(f"The output {path} is the source itself: name another file.")
        rate = self.sample_rate if sample_rate is None else sample_rate
        _check(loudness, rate)
        recording = read_recording(_only(source), self.encoder.upstream.sample_rate)
        self.encoder.check(recording)
        kept = voice if isinstance(voice, TargetVoice) else self.voice(voice)
        kept.check(self.encoder.source, name="The voice")
        wanted = {"source": recording.loudness, "voice": kept.loudness, "vocoder": None}.get(str(loudness), loudness)
        waveform = _resample(self._synthesise(recording, kept), self.sample_rate, rate)
        if not bool(torch.isfinite(waveform).all()):
            raise SpeechsslError(f"The vocoder {self.vocoder.name} gave samples that are no numbers: train it again.")
        waveform = match_loudness(waveform, rate, None if wanted is None else float(wanted))
        if path is not None:
            write_speech(path, waveform, sample_rate=rate)
        return Conversion(waveform, rate, path, measure(waveform, rate))

    def _listen(self, utterance: Any) -> Recording:
        recording = read_recording(utterance, self.encoder.upstream.sample_rate)
        recording = recording.trimmed() if self.trim else recording
        self.encoder.check(recording)
        return recording

    def _encode(self, recordings: list[Recording]) -> TargetVoice:
        seconds = sum(r.seconds for r in recordings)
        if seconds < SHORTEST:
            files = recordings[0].path if len(recordings) == 1 else f"{len(recordings)} files"
            raise AudioError(
                f"{files} of the target hold {seconds:.2f} s of speech, but a voice needs {SHORTEST:g} s at least: "
                "give more, half a minute if you can."
            )
        found: list[Tensor] = []
        with progress("Encoding the voice", seconds, unit="s of audio") as advance:
            for recording in recordings:
                for piece in self.encoder.pieces(recording):
                    found.append(piece.cpu())
                    advance(len(piece) / self.encoder.upstream.frame_rate)
        rate = self.encoder.upstream.sample_rate
        level = reference_loudness([r.waveform for r in recordings], rate)
        level = recordings[0].loudness if level is None else level  # none of them is silent
        return TargetVoice(torch.cat(found), self.encoder.source, rate, seconds, level)

    def _synthesise(self, recording: Recording, voice: TargetVoice) -> Tensor:
        """The converted speech, (S,) at the vocoder's rate."""
        frames = self.speak(self.encoder.pieces(recording), voice.frames)
        window = None if self.encoder.chunk is None else min(self.encoder.chunk, WINDOW)
        found: list[Tensor] = []
        with progress("Converting", recording.seconds, unit="s of audio") as advance:
            for waveform in synthesise_pieces(self.vocoder, frames, window=window):
                found.append(waveform.float().cpu())
                advance(len(waveform) / self.sample_rate)
        return torch.cat(found)


def _only(source: str | Path) -> Any:
    found = resolve_items(source)
    if len(found) != 1:
        raise ConfigError(f"One source is converted at a time, but {source} stands for {len(found)}: name one file.")
    return found[0]


def _check(loudness: Loudness, sample_rate: int) -> None:
    names = ("source", "voice", "vocoder")
    if loudness not in names and not (isinstance(loudness, float | int) and -70.0 <= loudness <= LOUDEST):
        raise ConfigError(f"`loudness` must be one of {', '.join(names)}, or -70 to 0 LUFS, but is {loudness!r}.")
    if not 1_000 <= sample_rate <= 384_000:
        raise ConfigError(f"`sample_rate` must lie in 1000..384000 Hz, but is {sample_rate}.")


def _resample(waveform: Tensor, sample_rate: int, wanted: int) -> Tensor:
    if wanted == sample_rate:
        return waveform
    import soxr

    return torch.from_numpy(soxr.resample(waveform.numpy(), sample_rate, wanted, quality="HQ"))
