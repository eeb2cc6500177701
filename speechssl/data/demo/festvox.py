"""festvox-ru: one man reads 620 Russian sentences (a Festival voice by Nickolay Shmyrev)."""

import re
from collections.abc import Mapping
from pathlib import Path

from speechssl.data.demo.base import Item, Source

_LINE = re.compile(r'^\( *(\S+) +"(.*)" *\)$')


class FestvoxRu(Source):
    """16 kHz, sentences of 10 s on average."""

    name = "festvox_ru"
    debian = ("festvox-ru",)
    licence = "BSD-like (festvox)"
    keep = r"/(wav/.*\.wav|etc/txt\.done\.data|copyright)$"
    expected = 620

    def items(self, folders: Mapping[str, Path]) -> list[Item]:
        """Text from `etc/txt.done.data`; `+` marks the stressed vowel and is dropped."""
        voice = folders["festvox-ru"] / "usr/share/festival/voices/russian/msu_ru_nsh_clunits"
        items = []
        for line in (voice / "etc/txt.done.data").read_text(encoding="utf-8").splitlines():
            if match := _LINE.match(line.strip()):
                name, text = match.groups()
                file = voice / "wav" / f"{name}.wav"
                items.append(Item(name, file, "ru", text.replace("+", ""), "ru_nsh"))
        return items
