"""Two adventure games with English actors, 11 kHz, without text and without names of the speakers.

Each game keeps its sound in a format of its own; the clips are copied out of it as MP3 or as raw 8-bit samples. The
layouts are those of the engines `queen` and `drascula` in ScummVM. For pre-training only.
"""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from speechssl.data.demo.base import Item, Source
from speechssl.errors import SpeechsslError

_CUSTOM = {"original_sample_rate": 11025}


class Queen(Source):
    """Flight of the Amazon Queen: MP3 clips in one resource file with a table in front."""

    name = "queen"
    debian = ("flight-of-the-amazon-queen",)
    licence = "Flight-of-the-Amazon-Queen-License (free, no fee for the game alone)"
    keep = r"(queen\.1c|copyright)$"
    expected = 6600

    def items(self, folders: Mapping[str, Path]) -> list[Item]:
        """Noises have names that end in SSSS."""
        base = folders["flight-of-the-amazon-queen"]
        resource = (base / "usr/share/scummvm/flight-of-the-amazon-queen/queen.1c").read_bytes()
        if resource[:4] != b"QTBL" or resource[12] != 1:
            raise SpeechsslError(
                "The file queen.1c is not the MP3 edition: leave the source 'queen' out with a config."
            )
        return [
            Item(stem.lower(), file, "en", custom=_CUSTOM, skip="no speech" if stem.endswith("SSSS") else "")
            for stem, file in _unpack(_queen_clips(resource), base / "clips", ".mp3")
        ]


def _queen_clips(resource: bytes) -> Iterator[tuple[str, bytes]]:
    (count,) = struct.unpack_from(">H", resource, 13)
    for index in range(count):
        name, _, offset, size = struct.unpack_from(">12sBII", resource, 15 + 21 * index)
        stem, _, kind = name.rstrip(b"\0").decode("ascii").partition(".")
        if kind == "SB":
            yield stem, resource[offset : offset + size]


class Drascula(Source):
    """Drascula: one file of unsigned 8-bit samples per line, after a header of 32 bytes."""

    name = "drascula"
    debian = ("drascula",)
    licence = "Drascula-License (free, no fee for the game alone)"
    keep = r"(\.ALS|copyright)$"
    expected = 750

    def items(self, folders: Mapping[str, Path]) -> list[Item]:
        """Lines of dialogue have numbers as names; some begin with a letter."""
        base = folders["drascula"]
        files = sorted((base / "usr/share/scummvm/drascula/en").glob("*.ALS"))
        clips = ((file.stem, file.read_bytes()[32:]) for file in files)
        return [Item(n.lower(), file, "en", custom=_CUSTOM) for n, file in _unpack(clips, base / "clips", ".u8")]


def _unpack(clips: Iterator[tuple[str, bytes]], folder: Path, suffix: str) -> list[tuple[str, Path]]:
    """Writes each clip into a file of its own, unless it is already there."""
    folder.mkdir(exist_ok=True)
    files = []
    for name, data in clips:
        file = folder / f"{name}{suffix}"
        if not file.exists() or file.stat().st_size != len(data):
            file.write_bytes(data)
        files.append((name, file))
    return files
