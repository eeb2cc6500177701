"""Fish Fillets NG: the Czech and Dutch voices of a puzzle game, with the script of every dialogue.

The colour of the subtitle names the role. The two fish are one actor each per language. Roles with a name (parrot,
vikings, ...) are taken as one person each; plain colours are used by different figures in different levels, so their
labels carry the level. One actor may stand behind several minor roles: they serve only for training.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from speechssl.data.demo.base import Item, Source

_DIALOG = re.compile(
    r'dialogId\(\s*"([^"]+)",\s*"([^"]*)",\s*"(?:[^"\\]|\\.)*"\s*\)\s*dialogStr\(\s*"((?:[^"\\]|\\.)*)"\s*\)'
)
_NAMED = ("small", "big", "statue", "parrot", "linuxer", "viking", "robodog", "elk", "snail", "pizla", "crab")
_GAME = "usr/share/games/fillets-ng"


class _Fillets(Source):
    language: str
    licence = "GPL-2"
    keep = r"(script/.*dialogs_(cs|nl)\.lua|sound/.*/(cs|nl)/[^/]*\.ogg|copyright)$"

    def items(self, folders: Mapping[str, Path]) -> list[Item]:
        """Clips whose dialogue is in the scripts; the others are noises, shouts and laughter."""
        script = _read_script(folders["fillets-ng-data"] / _GAME / "script", self.language)
        sound = folders[f"fillets-ng-data-{self.language}"] / _GAME / "sound"
        items = []
        for file in sorted(sound.rglob(f"{self.language}/*.ogg")):
            level, name = file.relative_to(sound).parts[0], file.stem
            font, text = script.get((level, name), ("", ""))
            skip = "" if text.strip() else "no speech"
            speaker = _speaker(self.language, level, font)
            group = "-".join(file.relative_to(sound).parts[:-2])
            items.append(Item(f"{group}-{name}", file, self.language, text, speaker, custom={"role": font}, skip=skip))
        return items


class FilletsCs(_Fillets):
    """Two leads and about 25 minor roles, Czech."""

    name = "fillets_cs"
    debian = ("fillets-ng-data", "fillets-ng-data-cs")
    language = "cs"
    expected = 1750


class FilletsNl(_Fillets):
    """Two leads, Dutch."""

    name = "fillets_nl"
    debian = ("fillets-ng-data", "fillets-ng-data-nl")
    language = "nl"
    expected = 1520


def _read_script(folder: Path, language: str) -> dict[tuple[str, str], tuple[str, str]]:
    """(level, clip) -> (font, text)."""
    script = {}
    for file in sorted(folder.rglob(f"*dialogs_{language}.lua")):
        level = file.relative_to(folder).parts[0]
        for name, font, text in _DIALOG.findall(file.read_text(encoding="utf-8")):
            script[level, name] = (font.removeprefix("font_"), re.sub(r"\\(.)", r"\1", text))
    return script


def _speaker(language: str, level: str, font: str) -> str | None:
    if font in ("", "both"):
        return None
    return f"{language}_{font}" if font.startswith(_NAMED) else f"{language}_{font}_{level}"
