"""gcin-voice: two people read the Mandarin syllables with every tone (the second from the ChionMeilin project)."""

from collections.abc import Mapping
from pathlib import Path

from speechssl.data.demo.base import Item, Source

_LICENCES = {"3": "GPL-3.0-only OR LGPL-3.0-only", "5": "CC-BY-3.0"}


class Gcin(Source):
    """Syllables of 0.35 s on average; the text is the syllable in Zhuyin with the number of its tone."""

    name = "gcin"
    debian = ("gcin-voice",)
    licence = "GPL-3.0-only OR LGPL-3.0-only; CC-BY-3.0"
    keep = r"(\.ogg|copyright)$"
    expected = 2358

    def items(self, folders: Mapping[str, Path]) -> list[Item]:
        """`SYLLABLE/VOICE.ogg`. The tone stays in `tone`: as a digit in the text it would read as a number."""
        base = folders["gcin-voice"] / "usr/share/gcin-voice/ogg"
        items = []
        for file in sorted(base.rglob("*.ogg")):
            syllable, voice = file.parent.name, file.stem
            text, tone = syllable.rstrip("12345"), syllable[len(syllable.rstrip("12345")) :]
            code = "".join(f"{ord(c) & 0xFF:02x}" for c in text)
            custom = {"tone": tone, "unit": "syllable"}
            key = f"{code}-{tone or '0'}-{voice}"
            items.append(Item(key, file, "zh", text, f"zh_gcin{voice}", _LICENCES.get(voice, ""), custom=custom))
        return items
