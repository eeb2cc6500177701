"""Frame labels of a corpus split, as clustering writes them and pre-training reads them.

One safetensors file per split: the codes of all utterances end to end, offsets, utterance ids, label rate and the
fingerprint of the corpus that was labelled. Codes and ids are read from the file when they are looked up.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from speechssl.checkpoint import save_tensors
from speechssl.data.indexed import UtteranceIndex
from speechssl.data.strings import LINE_FEED, StringTable, find_all
from speechssl.errors import SpeechsslError

FORMAT = "1"
CHUNK = 1 << 16
AGAIN = "remove the file and run `speechssl cluster` again"


@dataclass(frozen=True)
class LabelSet:
    """The codes of every utterance of a split."""

    codes: Tensor
    """All utterances end to end, (N,) int16, or int32 from 32 768 labels on."""
    offsets: Tensor
    """Where each utterance begins, and the end of the last, (U + 1,) int64."""
    ids: Sequence[str]
    num_labels: int
    label_rate: float
    """Codes per second, Hz."""
    corpus: str
    """Fingerprint of the corpus."""
    origin: str
    """What was clustered, such as 'mfcc layer 0'."""

    def by_id(self) -> dict[str, Tensor]:
        """Utterance id -> (T,) codes, sharing memory."""
        bounds = self.offsets.tolist()
        return {name: self.codes[a:b] for name, a, b in zip(self.ids, bounds[:-1], bounds[1:], strict=True)}

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        tensors = {
            "codes": self.codes,
            "offsets": self.offsets,
            "ids": torch.frombuffer(bytearray(StringTable.of(self.ids).text()) or b"\n", dtype=torch.uint8),
        }
        metadata = {
            "format": FORMAT,
            "num_labels": str(self.num_labels),
            "label_rate": repr(self.label_rate),
            "corpus": self.corpus,
            "origin": self.origin,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(tensors, path, metadata=metadata)

    def fingerprint(self) -> str:
        """A short hash of the labels."""
        digest = hashlib.sha256(StringTable.of(self.ids).text().tobytes())
        for tensor in (self.codes, self.offsets):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()[:16]


def make_label_set(
    codes: Mapping[str, Tensor], *, num_labels: int, label_rate: float, corpus: str, origin: str
) -> LabelSet:
    """Joins the codes of utterances: id -> (T,) int64."""
    dtype = torch.int16 if num_labels <= 2**15 else torch.int32
    parts = [c.to(dtype) for c in codes.values()]
    offsets = torch.tensor([0, *(len(c) for c in parts)]).cumsum(0)
    joined = torch.cat(parts) if parts else torch.empty(0, dtype=dtype)
    return LabelSet(joined, offsets, tuple(codes), num_labels, label_rate, corpus, origin)


def label_path(folder: Path, split: str) -> Path:
    """Where the labels of a split stand below the folder of `speechssl cluster`."""
    return folder / f"labels-{split}.safetensors"


def load_labels(path: Path) -> LabelSet:
    """Reads what `LabelSet.save` wrote.

    Raises:
        SpeechsslError: missing, unreadable, of another format, or with codes that no cluster has.
    """
    if not path.is_file():
        raise SpeechsslError(f"There are no labels at {path}: run `speechssl cluster` for this split first.")
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata()
            if meta["format"] != FORMAT:
                raise SpeechsslError(f"The labels {path} have another format than {FORMAT}: {AGAIN}.")
            ids = file.get_tensor("ids").numpy()
            table = StringTable.from_lines(ids if len(ids) != 1 or ids[0] != LINE_FEED else ids[:0])
            codes = file.get_tensor("codes")
            _check_codes(codes, int(meta["num_labels"]), path)
            return LabelSet(
                codes,
                file.get_tensor("offsets"),
                table,
                int(meta["num_labels"]),
                float(meta["label_rate"]),
                meta["corpus"],
                meta["origin"],
            )
    except (KeyError, ValueError, SafetensorError) as error:
        raise SpeechsslError(f"The labels {path} can't be read ({error}): {AGAIN}.") from error


def _check_codes(codes: Tensor, num_labels: int, path: Path) -> None:
    lowest, highest = codes.aminmax() if len(codes) else (torch.zeros(()), torch.zeros(()))
    if int(lowest) < 0 or int(highest) >= num_labels:
        wrong = int(lowest) if int(lowest) < 0 else int(highest)
        raise SpeechsslError(f"The labels {path} hold the code {wrong}, but are of {num_labels} clusters: {AGAIN}.")


class UtteranceLabels:
    """One set of labels, looked up by the numbers of an index."""

    def __init__(self, labels: LabelSet, index: UtteranceIndex) -> None:
        self.label_rate = labels.label_rate
        """Codes per second, Hz."""
        self.num_labels = labels.num_labels
        """K."""
        self._codes = labels.codes
        self._offsets = labels.offsets
        self._places = find_all(index.ids, StringTable.of(labels.ids))

    def lengths(self) -> NDArray[np.int32]:
        """Codes of each utterance, -1 = not labelled, (U,)."""
        lengths = np.empty(len(self._places), dtype=np.int32)
        offsets = self._offsets.numpy()
        for begin in range(0, len(lengths), CHUNK):
            part = self._places[begin : begin + CHUNK]
            sizes = offsets[part + 1] - offsets[part]
            lengths[begin : begin + len(part)] = np.where(part < 0, -1, sizes)
        return lengths

    def codes(self, number: int, begin: int, end: int) -> Tensor:
        """A stretch of the codes of an utterance that is labelled, (T,)."""
        place = int(self._places[number])
        first, last = int(self._offsets[place]), int(self._offsets[place + 1])
        return self._codes[first + begin : min(first + end, last)]
