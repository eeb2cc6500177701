"""Text-to-speech by eSpeak NG (formants), in process: the library inside the package `espeakng-loader`.

Over a hundred languages; a variant is a voice quality that the library lays over the language's rules.
"""

import ctypes
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from downstreams.deepfake_detection.attacks import SAMPLE_RATE, Attack, Source, Synthesiser
from speechssl.errors import SpeechsslError

VOICES = ("m1", "f1", "m3", "f2", "m7", "f4", "klatt", "f5")
LANGUAGES = {"en": "en-us", "zh": "cmn"}
"""Codes that differ from the library's names."""

RATE, SLOWEST = 175, 90  # words per minute: the library's own, and the least that is used

_RATE_PARAMETER = 1
_SYNCHRONOUS, _DONT_EXIT, _UTF8, _IPA = 2, 0x8000, 1, 2
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """The library, opened once per process: it holds its state in globals."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise SpeechsslError("eSpeak NG needs 'espeakng-loader': pip install espeakng-loader.") from error
        self._library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        self._chunks: list[NDArray[np.int16]] = []
        self._callback = _Callback(
            lambda samples, count, _: self._collect(samples, count)
        )  # kept here, or it is freed while the library still calls it
        data = str(espeakng_loader.get_data_path()).encode()
        self.sample_rate = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, _DONT_EXIT))
        if self.sample_rate <= 0:
            raise SpeechsslError("eSpeak NG can't read its voices: install the package 'espeakng-loader' again.")
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p

    def _collect(self, samples: Any, count: int) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, text: str, voice: str, *, words_per_minute: int = RATE) -> Tensor:
        """Returns (S,) float32 at `sample_rate`; `voice` is such as 'ru' or 'en-us+f2'."""
        self._set_voice(voice)
        self._library.espeak_SetParameter(_RATE_PARAMETER, words_per_minute, 0)
        self._chunks.clear()
        data = text.encode()
        self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        if not self._chunks:
            raise SpeechsslError(f"eSpeak NG says nothing for the text '{text}' in voice '{voice}'.")
        return torch.from_numpy(np.concatenate(self._chunks).astype(np.float32) / 32_768)

    def phonemes(self, text: str, voice: str) -> list[str]:
        """Returns the clauses of the text in the phonetic alphabet."""
        self._set_voice(voice)
        rest = ctypes.c_char_p(text.encode())
        clauses = []
        while rest.value is not None:
            clause = self._library.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, _IPA)
            clauses.append(clause.decode() if clause else "")
        return [c for c in clauses if c]

    def _set_voice(self, voice: str) -> None:
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise SpeechsslError(f"eSpeak NG has no voice '{voice}'.")


@cache
def open_espeak() -> Espeak:
    """The one instance of this process."""
    return Espeak()


def _load() -> Synthesiser:
    espeak = open_espeak()

    def synthesise(source: Source) -> tuple[Tensor, int]:
        language = LANGUAGES.get(source.language, source.language.replace("_", "-"))
        voice = f"{language}+{VOICES[source.variant]}"
        spoken = espeak.speak(source.text, voice)
        # The library is hastier than people are: short sentences are said at the pace of the original.
        pace = (spoken.numel() / espeak.sample_rate) / (source.waveform.numel() / SAMPLE_RATE)
        if pace < 1.0:
            spoken = espeak.speak(source.text, voice, words_per_minute=max(SLOWEST, round(RATE * pace)))
        return spoken, espeak.sample_rate

    return synthesise


ATTACKS = (Attack("espeak", "formant TTS", "tts", "espeakng-loader", _load, variants=len(VOICES)),)
