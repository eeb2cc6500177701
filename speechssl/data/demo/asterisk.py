"""The prompts of the Asterisk telephone system, in G.722 (16 kHz), by four professional voices.

English and Spanish are one woman: they share a speaker label, and so offer cross-language pairs.
"""

import gzip
import re
from collections.abc import Mapping
from pathlib import Path

from speechssl.data.demo.base import Item, Source

_VOICES = {
    "en": ("asterisk_en_es", "CC-BY-SA-3.0"),
    "es": ("asterisk_en_es", "CC-BY-SA-3.0"),
    "fr": ("asterisk_fr", "CC-BY-SA-3.0"),
    "it": ("asterisk_it", "CC-BY-3.0"),
    "ru": ("asterisk_ru", "CC-BY-3.0"),
}


class Asterisk(Source):
    """Core sounds in five languages."""

    name = "asterisk"
    debian = tuple(f"asterisk-core-sounds-{lang}{kind}" for lang in _VOICES for kind in ("", "-g722"))
    licence = "CC-BY-SA-3.0; CC-BY-3.0"
    keep = r"(\.g722|\.txt\.gz|copyright)$"
    expected = 2600

    def items(self, folders: Mapping[str, Path]) -> list[Item]:
        """Text from `core-sounds-LANG.txt.gz`; lines wholly in brackets are tones, silence and music."""
        items = []
        for language, (speaker, licence) in _VOICES.items():
            package = f"asterisk-core-sounds-{language}"
            texts = _read_texts(folders[package] / "usr/share/doc" / package / f"core-sounds-{language}.txt.gz")
            (sounds,) = (p for p in (folders[f"{package}-g722"] / "usr/share/asterisk/sounds").iterdir() if p.is_dir())
            for file in sorted(sounds.rglob("*.g722")):
                key = file.relative_to(sounds).with_suffix("").as_posix()
                text = texts.get(key, "[unknown]")
                skip = "no speech" if re.fullmatch(r"\[.*\]", text) else ""
                spoken = None if "[" in text else text
                items.append(
                    Item(f"{language}-{key.replace('/', '-')}", file, language, spoken, speaker, licence, skip=skip)
                )
        return items


def _read_texts(file: Path) -> dict[str, str]:
    texts = {}
    for line in gzip.decompress(file.read_bytes()).decode("utf-8", errors="replace").splitlines():
        key, colon, text = line.partition(":")
        if colon and not line.startswith(";"):
            texts[key.strip()] = text.strip()
    return texts
