"""Attacks: how spoofed speech is made. One small file per synthesiser or vocoder; the file is the registration.

A module holds `ATTACKS`, a tuple of `Attack`. Text-to-speech says the words of a real utterance; copy synthesis takes a
real utterance apart and builds it again, in the voice of its speaker.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from torch import Tensor

from speechssl.errors import UnknownNameError

SAMPLE_RATE = 16_000  # Hz, of `Source.waveform`


@dataclass(frozen=True)
class Source:
    """The real utterance that an attack imitates."""

    text: str
    language: str
    """ISO 639 code."""
    waveform: Tensor
    """(S,) float32 at 16 kHz."""
    variant: int = 0
    """Which voice or setting, below `Attack.variants`."""
    seed: int = 0
    """For the random numbers of a synthesiser that draws any."""


Synthesiser = Callable[[Source], tuple[Tensor, int]]
"""Returns the spoofed waveform (S,) float32 and its sampling rate, Hz."""


@dataclass(frozen=True)
class Attack:
    """One way to make spoofed speech."""

    name: str
    family: str
    """Technology, such as 'formant TTS' or 'neural vocoder'."""
    kind: Literal["tts", "copy"]
    needs: str
    """The package it comes from."""
    load: Callable[[], Synthesiser]
    """Fetches what is needed and opens it; raises SpeechsslError where it can't be had."""
    languages: frozenset[str] | None = None
    """None = any."""
    variants: int = 1

    def covers(self, language: str) -> bool:
        """Whether it can speak a language (copy synthesis: any)."""
        return self.languages is None or language in self.languages


@cache
def list_attacks() -> dict[str, Attack]:
    """All attacks by name."""
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    return {attack.name: attack for module in modules for attack in module.ATTACKS}


def find_attack(name: str) -> Attack:
    """Looks an attack up by name.

    Raises:
        UnknownNameError: there is none; near matches are named.
    """
    attacks = list_attacks()
    if name not in attacks:
        raise UnknownNameError("attack", name, attacks)
    return attacks[name]
