"""Puts features into files that are there whole or not at all, utterance by utterance or piece by piece."""

import os
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from speechssl.errors import SpeechsslError
from speechssl.feature_formats import Block, FeatureFormat, Spans
from speechssl.files import naming, replacing
from speechssl.types import HiddenStates, Utterance

PART = 1 << 20
"""Bytes that are copied at once."""


class _Discarded(Exception):
    """Lets files that are being replaced stay as they were."""


class OpenFiles:
    """The files of one name while they are written; `commit` gives them their names."""

    def __init__(self, root: Path, form: FeatureFormat, file: str) -> None:
        """
        Args:
            root: the folder.
            file: as `FeatureFormat.file` gives it.
        """
        self.format = form
        self.file = file
        self.paths = [root / name for name in form.files(file)]
        self._files: list[IO[bytes]] = []
        with ExitStack() as stack:
            for path in self.paths:
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = stack.enter_context(replacing(path, sync=form.sharded))
                # Without a buffer: what a full disk refuses must not be tried again when the file is cut and closed.
                self._files.append(stack.enter_context(partial.open("r+b", buffering=0)))
            self._stack = stack.pop_all()
        self.size = 0
        """Bytes in the largest of the files."""

    def append(self, utterance: Utterance, frames: int, pieces: Iterable[HiddenStates]) -> Spans:
        """Adds an utterance whose features come in pieces; on an error the files are as they were before.

        Args:
            frames: T of all pieces together.

        Raises:
            SpeechsslError: the pieces have another number of frames.
            OSError: among others a full disk.
        """
        begins = [file.tell() for file in self._files]
        try:
            with naming(self.paths[0]):
                places = self._lay_out(self.format.blocks(utterance, frames), frames)
                done = 0
                for piece in pieces:
                    for layer, place in places.items():
                        _write(place.file, place.position + done * place.row, _bytes(piece[layer]))
                    done += next(iter(piece)).size(0)
        except BaseException:
            self._cut(begins)
            raise
        if done != frames:
            self._cut(begins)
            raise SpeechsslError(f"{utterance.path} gave {done} frames, but should have {frames}: report this.")
        ends = [file.seek(0, os.SEEK_END) for file in self._files]
        self.size = max(ends)
        return tuple((begin, end - begin) for begin, end in zip(begins, ends, strict=True))

    def copy(self, sources: Iterable[Path], spans: Spans) -> Spans:
        """Adds an utterance as it stands in other files of the same format."""
        found = []
        for file, source, (first, size) in zip(self._files, sources, spans, strict=True):
            begin = file.tell()
            with source.open("rb") as old:
                old.seek(first)
                for done in range(0, size, PART):
                    _write(file, begin + done, old.read(min(PART, size - done)))
            found.append((begin, size))
        self.size = max(file.tell() for file in self._files)
        return tuple(found)

    def commit(self) -> None:
        """Closes the files and gives them their names, each at once."""
        with self._stack:
            for file in self._files:
                _write(file, file.tell(), self.format.end)

    def discard(self) -> None:
        """Leaves nothing."""
        with suppress(_Discarded), self._stack:
            raise _Discarded

    def _lay_out(self, blocks: list[list[Block]], frames: int) -> "dict[int, _Place]":
        """Writes what stands around the frames, and returns where those of each layer go."""
        places = {}
        for file, own in zip(self._files, blocks, strict=True):
            position = file.tell()
            for block in own:
                _write(file, position, block.head)
                position += len(block.head)
                if block.layer is not None:
                    row = self.format.size(block, 1)
                    places[block.layer] = _Place(file, position, row)
                    position += frames * row
                if block.tail:
                    _write(file, position, block.tail)
                    position += len(block.tail)
        return places

    def _cut(self, ends: list[int]) -> None:
        for file, end in zip(self._files, ends, strict=True):
            file.truncate(end)
            file.seek(end)


@dataclass(frozen=True)
class _Place:
    file: IO[bytes]
    position: int
    row: int
    """Bytes per frame."""


def _bytes(features: Tensor) -> memoryview:
    array: NDArray[np.float32] = features.contiguous().numpy().astype("<f4", copy=False)
    return array.reshape(-1).view(np.uint8).data


def _write(file: IO[bytes], position: int, data: bytes | memoryview) -> None:
    file.seek(position)
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
