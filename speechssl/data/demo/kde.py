"""KDE's KLettres (letters and syllables) and KTuberling (single words), read by volunteers in many languages.

Norwegian Nynorsk is left out of both: KLettres says that its files come from a text-to-speech service, and KTuberling's
are of the same make. Speakers are not known.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from speechssl.data.demo.base import Item, Source
from speechssl.errors import SpeechsslError

_SYNTHETIC = ("nn",)


class Klettres(Source):
    """Letters and syllables; the spelling is in `sounds.xml`."""

    name = "klettres"
    debian = ("klettres-data",)
    licence = "GPL-2.0-or-later"
    keep = r"(klettres/.*\.(ogg|wav|opus|mp3)|sounds\.xml|copyright)$"
    expected = 1500

    def items(self, folders: Mapping[str, Path]) -> list[Item]:
        """Each sound of each language once."""
        base = folders["klettres-data"] / "usr/share/klettres"
        items: dict[str, Item] = {}
        for listing in sorted(base.glob("*/sounds.xml")):
            locale = listing.parent.name
            skip = "synthetic" if locale in _SYNTHETIC else ""
            for unit, name, path in _read_sounds(listing):
                file = base / path
                key = f"{locale}-{re.sub(r'[^0-9A-Za-z]+', '-', Path(path).with_suffix('').as_posix())}".lower()
                if file.is_file():
                    items[key] = Item(key, file, locale.partition("_")[0], name, custom={"unit": unit}, skip=skip)
        return list(items.values())


def _read_sounds(listing: Path) -> list[tuple[str, str, str]]:
    """(letter or syllable, spelling, path) of each sound."""
    try:
        tree = ElementTree.parse(listing)
    except ElementTree.ParseError as error:
        raise SpeechsslError(f"{listing} is not valid XML ({error}): fetch the package klettres-data again.") from error
    units = {"alphabet": "letter", "syllables": "syllable"}
    return [
        (unit, sound.get("name", ""), sound.get("file", ""))
        for tag, unit in units.items()
        for block in tree.iter(tag)
        for sound in block.iter("sound")
    ]


class Ktuberling(Source):
    """Words without text: the list names the picture in English, not the word that is spoken."""

    name = "ktuberling"
    debian = ("ktuberling-data",)
    licence = "GPL-2.0-or-later"
    keep = r"(ktuberling/sounds/.*\.(ogg|wav|opus)|copyright)$"
    expected = 1400

    def items(self, folders: Mapping[str, Path]) -> list[Item]:
        """Everything but the `tux-` figures, which laugh, burp and snore."""
        base = folders["ktuberling-data"] / "usr/share/ktuberling/sounds"
        items: dict[str, Item] = {}
        for file in sorted(f for f in base.rglob("*.*") if f.suffix in (".ogg", ".wav", ".opus")):
            locale = file.relative_to(base).parts[0]
            language = re.split(r"[_@]", locale)[0]
            skip = "synthetic" if language in _SYNTHETIC else "no speech" if file.name.startswith("tux-") else ""
            key = f"{locale.replace('@', '-')}-{file.stem}".lower()
            items[key] = Item(key, file, language, skip=skip)
        return list(items.values())
