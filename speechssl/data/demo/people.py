"""Two packages with many speakers and no text; their clips occur only in the speaker manifests."""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from speechssl.data.demo.base import Item, Source

_PAIRS = {"CymEng_Eng_GB": ("cy", "en"), "LmoIta_Ita_IT": ("lmo", "it"), "LtzGer_Ger_BE": ("lb", "de")}
_FILLERS = ("f1", "f2", "f3", "f4")
_GUISES = ("s1", "s2", "s3", "s4")


class Lart(Source):
    """The voices of a matched-guise task: four bilinguals per language pair, each in both languages, and four fillers.

    Readings of 50 to 80 s. The task takes eight different people per pair; the practice reading may be one of them
    again and is left out.
    """

    name = "lart"
    pypi = (("lart-research-assistant", "0.5.0"),)
    licence = "AGPL-3.0-or-later OR EUPL-1.2"
    expected = 33
    speakers_only = True

    def items(self, folders: Mapping[str, Path]) -> list[Item]:
        """Where the language isn't known (fillers, one file for both guises) it is the pair's, such as `lb-de`."""
        base = folders["lart-research-assistant"] / "research_assistant/web/audio/agt"
        items = []
        for folder, (minority, majority) in _PAIRS.items():
            either = f"{minority}-{majority}"
            readings = [(person, person, either) for person in _FILLERS]
            for person in _GUISES:
                files = [base / folder / f"{person}_{guise}.mp3" for guise in ("rml", "maj")]
                same = len({hashlib.sha256(f.read_bytes()).digest() for f in files}) == 1
                guises = [("maj", either)] if same else [("rml", minority), ("maj", majority)]
                readings += [(person, f"{person}_{guise}", language) for guise, language in guises]
            readings.append(("practice", "practice", either))
            for person, name, language in readings:
                skip = "unknown speaker" if person == "practice" else ""
                key, file = f"{either}-{name}", base / folder / f"{name}.mp3"
                items.append(Item(key, file, language, speaker=f"lart_{either}_{person}", segment=True, skip=skip))
        return items


class Speakerbox(Source):
    """Nine members of a city council in five public meetings; they are numbered here, not named."""

    name = "speakerbox"
    pypi = (("speakerbox", "1.2.0"),)
    licence = "MIT"
    expected = 72
    speakers_only = True

    def items(self, folders: Mapping[str, Path]) -> list[Item]:
        """`diarized.zip` holds MEETING/PERSON/START-END.wav."""
        data = folders["speakerbox"] / "speakerbox/tests/data"
        with zipfile.ZipFile(data / "diarized.zip") as archive:
            archive.extractall(data / "diarized")
        files = sorted((data / "diarized").rglob("*.wav"))
        people = {name: i for i, name in enumerate(sorted({f.parent.name for f in files}), start=1)}
        items = []
        for file in files:
            person, meeting = f"speakerbox_{people[file.parent.name]}", file.parent.parent.name
            key = f"{meeting[:4]}-{people[file.parent.name]}-{file.stem}"
            items.append(Item(key, file, "en", speaker=person, segment=True, custom={"session": meeting}))
        return items
