"""Telephone prompts at 8 kHz by three further voices, without text."""

import re
from collections.abc import Mapping
from pathlib import Path

from speechssl.data.demo.base import Item, Source

_VOICES = {
    "asterisk-prompt-it-menardi-wav": ("it", "it_menardi", "CC-BY-SA-3.0"),
    "asterisk-prompt-fr-armelle": ("fr", "fr_armelle", "BSD-like"),
    "asterisk-prompt-es-co": ("es", "es_avatar", "GPL-2.0-only"),
}
_NOISE = re.compile(r"(^|/)(silence/|.*(beep|tone|music|ring|tt-monkeys|tt-weasels))")


class Prompts(Source):
    """One voice per package; keep them apart from 16 kHz speech where the bandwidth would give a class away."""

    name = "prompts"
    debian = tuple(_VOICES)
    licence = "CC-BY-SA-3.0; BSD-like; GPL-2.0-only"
    keep = r"(\.wav|\.gsm|copyright)$"
    expected = 1050

    def items(self, folders: Mapping[str, Path]) -> list[Item]:
        """Everything but beeps and silence."""
        items = []
        for package, (language, speaker, licence) in _VOICES.items():
            sounds = folders[package] / "usr/share/asterisk/sounds"
            for file in sorted(f for f in sounds.rglob("*.*") if f.suffix in (".wav", ".gsm")):
                name = file.relative_to(sounds).with_suffix("").as_posix().partition("/")[2]
                skip = "no speech" if _NOISE.search(name) else ""
                key = f"{speaker}-{name.replace('/', '-')}"
                custom = {"original_sample_rate": 8000}
                items.append(Item(key, file, language, None, speaker, licence, custom=custom, skip=skip))
        return items
