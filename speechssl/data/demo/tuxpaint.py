"""Tux Paint's stamps: descriptions of pictures, read by volunteers in a dozen languages.

How many people read each language isn't known, so the clips have no speaker label.
"""

from collections.abc import Mapping
from pathlib import Path

from speechssl.data.demo.base import Item, Source


class Tuxpaint(Source):
    """Short sentences, Vorbis at 44 kHz."""

    name = "tuxpaint"
    debian = ("tuxpaint-stamps-default",)
    licence = "GPL-2"
    keep = r"(_desc_[A-Za-z_]+\.(ogg|wav)|\.txt|copyright)$"
    expected = 7200

    def items(self, folders: Mapping[str, Path]) -> list[Item]:
        """`X_desc_LANG.ogg` has its text in `X.txt`, line `LANG.utf8=`."""
        stamps = folders["tuxpaint-stamps-default"] / "usr/share/tuxpaint/stamps"
        texts: dict[Path, dict[str, str]] = {}
        items = []
        for file in sorted([*stamps.rglob("*_desc_*.ogg"), *stamps.rglob("*_desc_*.wav")]):
            stem, _, locale = file.name.partition(".")[0].partition("_desc_")
            labels = file.with_name(f"{stem}.txt")
            if labels not in texts:
                texts[labels] = _read_texts(labels)
            group = "-".join(file.relative_to(stamps).parts[:-1])
            name = f"{locale}-{group}-{stem}".lower().replace(" ", "_")
            items.append(Item(name, file, locale.partition("_")[0], texts[labels].get(locale)))
        return items


def _read_texts(file: Path) -> dict[str, str]:
    texts = {}
    if file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            locale, equals, text = line.partition(".utf8=")
            if equals and text.strip():
                texts[locale.strip()] = text.strip()
    return texts
