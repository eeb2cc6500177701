"""What every source of the demo corpus says about itself."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from speechssl.errors import SpeechsslError


@dataclass(frozen=True)
class Item:
    """One file to be decoded, with its labels."""

    id: str
    """Unique within the source; also the name of the FLAC file."""
    file: Path
    language: str
    text: str | None = None
    """As the package has it; None = not transcribed."""
    speaker: str | None = None
    """None = not known who speaks; a label never covers two people knowingly."""
    licence: str = ""
    """Where it differs from the source's."""
    segment: bool = False
    """Whether a long recording is cut at pauses into pieces of a few seconds."""
    custom: Mapping[str, Any] = field(default_factory=dict)
    skip: str = ""
    """Why the file is left out (and counted), such as 'no speech'; '' = it is taken."""


class Source(ABC):
    """Some packages that hold speech, and how to read their labels."""

    name: ClassVar[str]
    debian: ClassVar[tuple[str, ...]] = ()
    pypi: ClassVar[tuple[tuple[str, str], ...]] = ()
    """(name, version) of each."""
    licence: ClassVar[str]
    """SPDX expression, or words where none fits, as the package's copyright file has it."""
    keep: ClassVar[str] = ""
    """Regular expression of the paths to unpack."""
    expected: ClassVar[int]
    """Clips found when the reader was written; a tenth fewer is an error, since then the package has changed."""
    speakers_only: ClassVar[bool] = False
    """Whether the clips are only for the speaker manifests."""

    @abstractmethod
    def items(self, folders: Mapping[str, Path]) -> "Sequence[Item]":
        """Lists the files, also those that are left out.

        Args:
            folders: where each package was unpacked.
        """

    def checked_items(self, folders: Mapping[str, Path]) -> "list[Item]":
        """The files ordered by id.

        Raises:
            SpeechsslError: far fewer clips than the packages are known to hold.
        """
        found = sorted(self.items(folders), key=lambda item: item.id)
        count = sum(not item.skip for item in found)
        if count < 0.9 * self.expected:
            raise SpeechsslError(
                f"The packages of '{self.name}' hold {count} clips where about {self.expected} were expected: "
                "their layout has changed; leave the source out with a config."
            )
        return found
