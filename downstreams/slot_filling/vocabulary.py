"""Characters, and a class of its own for each tag before and after the value of a slot.

'ADD B-artist NICK DRAKE E-artist' is spelled A, D, D, blank between words, the tag B-artist, N, I, ..., E, the tag
E-artist: no blank stands between a tag and its value, as in S3PRL (`downstream/ctc/text.py`,
`CharacterTextSlotEncoder`). A tag that never closes is text.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from typing_extensions import override

from speechssl.ctc.vocabulary import Vocabulary
from speechssl.metric.slots import find_slots

BEGIN, END = "B-", "E-"


@dataclass(frozen=True)
class TaggedCharacters(Vocabulary):
    """Class 0 is the blank; then the characters, then the tags: of each slot its begin and its end."""

    characters: tuple[str, ...]
    slots: tuple[str, ...]

    @override
    def __len__(self) -> int:
        return 1 + len(self.characters) + 2 * len(self.slots)

    @override
    def encode(self, text: str) -> list[int]:
        return [self._classes[unit] for unit in self.split(text) if unit in self._classes]

    @override
    def decode(self, labels: Sequence[int]) -> str:
        """As S3PRL: 'B-name ' and ' E-name' for tags, whatever stands beside them."""
        return "".join(self._written[k - 1] for k in labels)

    @override
    def unseen(self, texts: Sequence[str]) -> Counter[str]:
        return Counter(unit for text in texts for unit in self.split(text) if unit not in self._classes)

    @override
    def state(self) -> Mapping[str, Any]:
        return {"characters": "".join(self.characters), "slots": list(self.slots)}

    @override
    def unit(self, label: int) -> str:
        return self._written[label - 1].strip() or "|"

    def split(self, text: str) -> Iterator[str]:
        """Characters and tags of a tagged text; tags of slots that are not in the vocabulary too."""
        named = {slot.name for slot in find_slots(text)} | set(self.slots)
        glued = True  # nothing before the first word, and no blank after a begin
        for word in text.split():
            begins, ends = (word.startswith(mark) and word[2:] in named for mark in (BEGIN, END))
            if not (glued or ends):
                yield " "
            if begins or ends:
                yield word
            else:
                yield from word
            glued = begins

    @cached_property
    def _tags(self) -> tuple[str, ...]:
        return tuple(mark + slot for slot in self.slots for mark in (BEGIN, END))

    @cached_property
    def _classes(self) -> Mapping[str, int]:
        return {unit: k for k, unit in enumerate([*self.characters, *self._tags], 1)}

    @cached_property
    def _written(self) -> tuple[str, ...]:
        return (*self.characters, *(f"{tag} " if tag.startswith(BEGIN) else f" {tag}" for tag in self._tags))


def find_units(texts: Iterable[str]) -> TaggedCharacters:
    """All characters and slots of the texts, sorted."""
    texts = list(texts)
    slots = tuple(sorted({slot.name for text in texts for slot in find_slots(text)}))
    tags = {mark + slot for slot in slots for mark in (BEGIN, END)}
    bare = TaggedCharacters((), slots)
    return TaggedCharacters(tuple(sorted({unit for text in texts for unit in bare.split(text)} - tags)), slots)
