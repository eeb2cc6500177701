"""A prepared corpus: a folder with `corpus.json`, Lhotse manifests and audio.

corpus.json                      name, source, licences, hours, fingerprint
manifests/<split>.jsonl.gz       Lhotse MonoCuts; paths relative to the folder
audio/<source>/<id>.flac         16 kHz mono
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from speechssl.errors import ManifestError, suggest
from speechssl.types import Utterance

FORMAT = 1


@dataclass(frozen=True)
class Corpus:
    """A corpus that `speechssl prepare` has written."""

    root: Path
    name: str
    source: str
    """'debian' (real speech) or 'synthetic'."""
    fingerprint: str
    """Hash over the manifests: equal corpora, equal fingerprint."""
    info: Mapping[str, Any]
    """The whole of corpus.json: among others `sources` with licence, hours and utterances of each."""
    left_out: frozenset[str] = frozenset()
    """Ids of utterances that no split hands out."""

    def splits(self) -> list[str]:
        """The names of the manifests that exist."""
        return sorted(p.name.removesuffix(".jsonl.gz") for p in (self.root / "manifests").glob("*.jsonl.gz"))

    def utterances(self, split: str) -> list[Utterance]:
        """Reads one manifest.

        Raises:
            ManifestError: no such split, or a file that can't be read.
        """
        path = self.root / "manifests" / f"{split}.jsonl.gz"
        if not path.exists():
            raise ManifestError(f"The corpus {self.root} has no split '{split}'.{suggest(split, self.splits())}")
        return [u for u in read_manifest(path, root=self.root) if u.id not in self.left_out]

    def without(self, ids: Iterable[str]) -> "Corpus":
        """The corpus without some utterances; it has another fingerprint, since what is made from it differs."""
        left_out = self.left_out | frozenset(ids)
        if left_out == self.left_out:
            return self
        digest = hashlib.sha256("\n".join([self.fingerprint, *sorted(left_out)]).encode()).hexdigest()
        return replace(self, fingerprint=digest, left_out=left_out)


def open_corpus(root: str | Path) -> Corpus:
    """Opens a prepared corpus.

    Raises:
        ManifestError: the folder holds no corpus, or one of another format.
    """
    root = Path(root)
    path = root / "corpus.json"
    if not path.is_file():
        raise ManifestError(f"{root} is no corpus (it has no corpus.json): run `speechssl prepare demo {root}`.")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        if info["format"] != FORMAT:
            raise ManifestError(f"The corpus {root} has format {info['format']}, not {FORMAT}: prepare it again.")
        return Corpus(root.resolve(), info["name"], info["source"], info["fingerprint"], info)
    except (KeyError, TypeError, ValueError) as error:
        raise ManifestError(f"{path} can't be read ({error}): prepare the corpus again.") from error


def read_manifest(path: Path, *, root: Path | None = None) -> list[Utterance]:
    """Reads a Lhotse cut manifest (.jsonl or .jsonl.gz) into utterances.

    The first supervision gives `text`, `speaker`, `language`; its `custom` fields give the rest.

    Args:
        root: folder that relative audio paths start from; None = the folder of the manifest.

    Raises:
        ManifestError: missing or malformed; the message names the file and what is wrong.
    """
    from lhotse.serialization import load_jsonl

    if not path.is_file():
        raise ManifestError(f"The manifest {path} does not exist: check the path.")
    if not path.stat().st_size:
        raise ManifestError(f"The manifest {path} is an empty file of 0 bytes: prepare it again.")
    base = path.parent if root is None else root
    try:
        return [_utterance(item, base) for item in load_jsonl(path)]
    except (KeyError, IndexError, TypeError, ValueError, OSError, EOFError) as error:
        raise ManifestError(
            f"The manifest {path} is not a whole Lhotse cut manifest ({_reason(error)}): mend it, or prepare it again."
        ) from error


def _reason(error: Exception) -> str:
    """One clause; a bare KeyError would be nothing but the key."""
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error).removesuffix(".")


def _utterance(cut: Mapping[str, Any], base: Path) -> Utterance:
    supervisions = cut.get("supervisions") or [{}]
    supervision = supervisions[0]
    labels = {k: supervision[k] for k in ("text", "speaker", "language", "gender") if supervision.get(k) is not None}
    labels.update(supervision.get("custom") or {})
    source = Path(cut["recording"]["sources"][0]["source"])
    path = source if source.is_absolute() else base / source
    return Utterance(cut["id"], str(path), float(cut["start"]), float(cut["duration"]), labels)
