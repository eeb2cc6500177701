"""Text-to-speech by eSpeak NG (formants), in over a hundred languages.

A variant is a voice quality that the library lays over the language's rules.
"""

import ctypes
from functools import cache

import torch
from torch import Tensor

from downstreams.deepfake_detection.attacks import SAMPLE_RATE, Attack, Source, Synthesiser
from speechssl.data.espeak import Espeak

VOICES = ("m1", "f1", "m3", "f2", "m7", "f4", "klatt", "f5")
LANGUAGES = {"en": "en-us", "zh": "cmn"}
"""Codes that differ from the library's names."""
RATE, SLOWEST = 175, 90  # words per minute: the library's own, and the least that is used

_UTF8, _IPA = 1, 2


class PhoneticEspeak(Espeak):
    """The library, which also says how a text is pronounced."""

    def phonemes(self, text: str, voice: str) -> list[str]:
        """Returns the clauses of the text in the phonetic alphabet."""
        self._library.espeak_SetVoiceByName(voice.encode())
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        rest = ctypes.c_char_p(text.encode())
        clauses = []
        while rest.value is not None:
            clause = self._library.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, _IPA)
            clauses.append(clause.decode() if clause else "")
        return [c for c in clauses if c]


@cache
def open_espeak() -> PhoneticEspeak:
    """The one instance of this process."""
    return PhoneticEspeak()


def _load() -> Synthesiser:
    espeak = open_espeak()

    def synthesise(source: Source) -> tuple[Tensor, int]:
        language = LANGUAGES.get(source.language, source.language.replace("_", "-"))
        voice = f"{language}+{VOICES[source.variant]}"
        spoken = espeak.speak(source.text, voice)
        # The library is hastier than people are: short sentences are said at the pace of the original.
        pace = (spoken.size / espeak.sample_rate) / (source.waveform.numel() / SAMPLE_RATE)
        if pace < 1.0:
            spoken = espeak.speak(source.text, voice, rate=max(SLOWEST, round(RATE * pace)))
        return torch.from_numpy(spoken), espeak.sample_rate

    return synthesise


ATTACKS = (Attack("espeak", "formant TTS", "tts", "espeakng-loader", _load, variants=len(VOICES)),)
