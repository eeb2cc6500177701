"""Speech by eSpeak NG (formant synthesis), in process: the library inside the PyPI package `espeakng-loader`."""

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from speechssl.data.flac import SAMPLE_RATE, write_flac
from speechssl.errors import SpeechsslError

_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1
_RATE, _PITCH = 1, 3
_IPA, _BETWEEN = 2, "_"
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """The library; it holds its state in globals, so there is one per process: see `open_espeak`."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise SpeechsslError("eSpeak NG needs espeakng-loader: pip install 'speechssl[synthesis]'.") from error
        self._library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        self._chunks: list[npt.NDArray[np.int16]] = []
        # Kept as an attribute, or it would be freed while the library still calls it.
        self._callback = _Callback(self._collect)
        data = str(espeakng_loader.get_data_path()).encode()
        self.sample_rate = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, _DONT_EXIT))
        if self.sample_rate <= 0:
            raise SpeechsslError("eSpeak NG can't read its voices: install the package espeakng-loader again.")
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: Any, count: int, _: Any) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, text: str, voice: str, *, pitch: int = 50, rate: int = 175) -> npt.NDArray[np.float32]:
        """Returns (S,) in [-1, 1] at `sample_rate`.

        Args:
            voice: language and variant, such as 'ru' or 'en-us+f2'.
            pitch: 0 to 99, 50 = the variant's own.
            rate: words per minute.

        Raises:
            SpeechsslError: no such voice, or nothing to say.
        """
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise SpeechsslError(f"eSpeak NG has no voice '{voice}'.")
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        self._library.espeak_SetParameter(_RATE, rate, 0)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # or breathy voices are seeded with the clock
        self._chunks.clear()
        data = text.encode()
        self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        if not self._chunks:
            raise SpeechsslError(f"eSpeak NG says nothing for the text '{text}' in voice '{voice}'.")
        waveform: npt.NDArray[np.float32] = np.concatenate(self._chunks).astype(np.float32) / np.float32(32768)
        return waveform

    def phonemes(self, text: str, voice: str) -> list[str]:
        """How a text is said, as IPA without stress and length of pauses: one string per phoneme.

        Raises:
            SpeechsslError: no such voice.
        """
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise SpeechsslError(f"eSpeak NG has no voice '{voice}'.")
        translate = self._library.espeak_TextToPhonemes
        translate.restype = ctypes.c_char_p
        rest = ctypes.c_char_p(text.encode())
        found: list[str] = []
        while rest.value:
            clause = translate(ctypes.byref(rest), _UTF8, _IPA | ord(_BETWEEN) << 8) or b""
            # "(en)" says that the next word is read by another language's rules
            found += re.split(rf"[{_BETWEEN}\s]+", re.sub(r"\([\w-]*\)", " ", clause.decode()))
        return [phone for phone in (part.strip("ˈˌ-") for part in found) if phone]


@cache
def open_espeak() -> Espeak:
    """The one instance of this process."""
    return Espeak()


@dataclass(frozen=True)
class Line:
    """A sentence to be spoken into a file."""

    id: str
    target: Path
    text: str
    voice: str
    pitch: int
    rate: int
    language: str
    speaker: str


def speak_all(lines: Sequence[Line]) -> dict[str, int]:
    """Writes one FLAC per line and returns the samples of each by id."""
    import soxr

    espeak = open_espeak()
    samples = {}
    for line in lines:
        waveform = espeak.speak(line.text, line.voice, pitch=line.pitch, rate=line.rate)
        waveform = soxr.resample(waveform, espeak.sample_rate, SAMPLE_RATE, quality="HQ").clip(-1.0, 1.0)
        samples[line.id] = write_flac(line.target, waveform)
    return samples
