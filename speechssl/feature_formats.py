"""How features lie in files: for each format, which bytes stand before and after the frames of each layer.

The frames themselves are float32, little-endian, row by row in all of them, and their number is known before the first
is computed; so a writer can put down features of any length piece by piece.

safetensors  a file per utterance, a tensor 'layer_<k>' (T, D) per layer
npy          a file per utterance, (K, T, D), or (T, D) where one layer was asked for
kaldi        archives, per layer in a folder of its own, (T, D) per utterance, and `feats.scp`
webdataset   tar shards with <key>.json, <key>.layer_<k>.npy (T, D) and, where known, <key>.txt per utterance
K layers asked for, T frames, D width.
"""

import io
import json
import re
import struct
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from speechssl.errors import ConfigError, ManifestError
from speechssl.types import Utterance

FormatName = Literal["safetensors", "npy", "kaldi", "webdataset"]
Spans = tuple[tuple[int, int], ...]
"""First byte and bytes of an utterance's part of each file."""
BLOCK = 512  # bytes of which a tar archive is made
BYTES = 4  # of a float32


@dataclass(frozen=True)
class Block:
    """A stretch of a file: some bytes, the frames of a layer, some bytes."""

    head: bytes
    layer: int | None = None
    """None = no frames."""
    tail: bytes = b""


class FeatureFormat(ABC):
    """What a format puts where; stateless."""

    sharded: bool
    """Whether many utterances share a file."""
    end = b""
    """What closes a file."""

    def __init__(self, widths: Mapping[int, int], *, frame_rate: float) -> None:
        """
        Args:
            widths: layer -> D, in ascending order of the layers.
            frame_rate: Hz.
        """
        self.widths = dict(widths)
        self.frame_rate = frame_rate

    @abstractmethod
    def name(self, utterance_id: str) -> str:
        """What the utterance is called in this format: a file without suffix, or a key."""

    @abstractmethod
    def file(self, name: str) -> str:
        """The file of a name, relative to the folder; '{layer}' in it stands for each layer."""

    @abstractmethod
    def blocks(self, utterance: Utterance, frames: int) -> list[list[Block]]:
        """For each of `files`, what one utterance adds to it."""

    def files(self, file: str) -> list[str]:
        """The files that are meant by what `file` returned."""
        return [file.format(layer=k) for k in self.widths] if self.sharded and "{layer}" in file else [file]

    def size(self, block: Block, frames: int) -> int:
        """Bytes of the frames of a block."""
        return 0 if block.layer is None else frames * self.widths[block.layer] * BYTES

    def finish(self, root: Path, entries: Iterable[tuple[str, str, Spans]]) -> dict[str, str]:
        """Returns further files to write, with their text.

        Args:
            root: the folder.
            entries: id, file, and first byte and bytes per file of each utterance.
        """
        del root, entries
        return {}


class _PerUtterance(FeatureFormat):
    sharded = False
    suffix: str

    def name(self, utterance_id: str) -> str:
        """A path below the folder."""
        return path_within(utterance_id)

    def file(self, name: str) -> str:
        """A file for each name."""
        return f"{name}.{self.suffix}"


class Safetensors(_PerUtterance):
    """A JSON header of fixed meaning, then the tensors; see the format's own description at huggingface/safetensors."""

    suffix = "safetensors"

    def blocks(self, utterance: Utterance, frames: int) -> list[list[Block]]:
        """The header, and the layers one after the other."""
        header: dict[str, object] = {"__metadata__": {"frame_rate": str(self.frame_rate), "id": utterance.id}}
        position = 0
        for layer, width in self.widths.items():
            end = position + frames * width * BYTES
            header[f"layer_{layer}"] = {"dtype": "F32", "shape": [frames, width], "data_offsets": [position, end]}
            position = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return [[Block(struct.pack("<Q", len(text)) + text), *(Block(b"", layer) for layer in self.widths)]]


class Npy(_PerUtterance):
    """NumPy's format, one array."""

    suffix = "npy"

    def __init__(self, widths: Mapping[int, int], *, frame_rate: float) -> None:
        super().__init__(widths, frame_rate=frame_rate)
        if len(set(widths.values())) > 1:
            raise ConfigError(f"The layers {list(widths)} differ in width: use --format safetensors.")

    def blocks(self, utterance: Utterance, frames: int) -> list[list[Block]]:
        """The header, and the layers one after the other."""
        del utterance
        first = next(iter(self.widths.values()))
        shape = (frames, first) if len(self.widths) == 1 else (len(self.widths), frames, first)
        return [[Block(npy_header(shape)), *(Block(b"", layer) for layer in self.widths)]]


class Kaldi(FeatureFormat):
    """Kaldi's binary archives of uncompressed float matrices.

    Paper: Povey et al. 2011, The Kaldi speech recognition toolkit, ASRU.
    """

    sharded = True

    def name(self, utterance_id: str) -> str:
        """Spaces would end a key, so they become underscores."""
        return re.sub(r"\s", "_", utterance_id)

    def file(self, name: str) -> str:
        """An archive in the folder of each layer."""
        return f"layer_{{layer}}/feats.{name}.ark"

    def blocks(self, utterance: Utterance, frames: int) -> list[list[Block]]:
        """Key, type and shape before each layer, in its own archive."""
        key = f"{self.name(utterance.id)} ".encode()
        sizes = [struct.pack("<bibi", 4, frames, 4, width) for width in self.widths.values()]
        return [[Block(key + b"\0BFM " + size, layer)] for layer, size in zip(self.widths, sizes, strict=True)]

    def finish(self, root: Path, entries: Iterable[tuple[str, str, Spans]]) -> dict[str, str]:
        """A feats.scp per layer, in the order that Kaldi wants (bytes of the keys), with absolute paths."""
        found = sorted((self.name(i).encode(), file, spans) for i, file, spans in entries)
        texts = {}
        for index, layer in enumerate(self.widths):
            lines = [
                f"{key.decode()} {(root / file.format(layer=layer)).absolute()}:{spans[index][0] + len(key) + 1}\n"
                for key, file, spans in found
            ]
            texts[f"layer_{layer}/feats.scp"] = "".join(lines)
        return texts


class WebDataset(FeatureFormat):
    """Tar shards whose members of one key follow each other."""

    sharded = True
    end = b"\0" * (2 * BLOCK)

    def name(self, utterance_id: str) -> str:
        """Dots would end a key, so they become underscores."""
        return path_within(utterance_id).replace(".", "_")

    def file(self, name: str) -> str:
        """A shard."""
        return f"shard-{name}.tar"

    def blocks(self, utterance: Utterance, frames: int) -> list[list[Block]]:
        """The description, the text, and an array per layer, as members of the archive."""
        key = self.name(utterance.id)
        described = {
            "id": utterance.id, "path": utterance.path, "start": utterance.start, "duration": utterance.duration,
            "frames": frames, "frame_rate": self.frame_rate, "layers": list(self.widths), **utterance.labels,
        }  # fmt: skip
        blocks = [_member(f"{key}.json", json.dumps(described, ensure_ascii=False, default=str).encode())]
        if utterance.labels.get("text") is not None:
            blocks.append(_member(f"{key}.txt", str(utterance.labels["text"]).encode()))
        for layer, width in self.widths.items():
            header = npy_header((frames, width))
            size = len(header) + frames * width * BYTES
            blocks.append(Block(_tar_header(f"{key}.layer_{layer}.npy", size) + header, layer, b"\0" * (-size % BLOCK)))
        return [blocks]


FORMATS: dict[FormatName, type[FeatureFormat]] = {
    "safetensors": Safetensors,
    "npy": Npy,
    "kaldi": Kaldi,
    "webdataset": WebDataset,
}


def path_within(utterance_id: str) -> str:
    """The id as a relative path that stays within its folder."""
    parts = [p for p in utterance_id.replace("\\", "/").split("/") if p not in ("", ".", "..")]
    return "/".join(parts or ["utterance"])


def npy_header(shape: tuple[int, ...]) -> bytes:
    """What stands before the numbers of a float32 array in a .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def check_names(form: FeatureFormat, ids: Iterable[str]) -> None:
    """
    Raises:
        ManifestError: two ids come to the same name in this format.
    """
    owners: dict[str, str] = {}
    for utterance_id in ids:
        other = owners.setdefault(form.name(utterance_id), utterance_id)
        if other != utterance_id:
            raise ManifestError(
                f"The ids '{other}' and '{utterance_id}' would both be '{form.name(utterance_id)}' in the output: "
                "rename one of them."
            )


def _member(name: str, data: bytes) -> Block:
    return Block(_tar_header(name, len(data)) + data + b"\0" * (-len(data) % BLOCK))


def _tar_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)
