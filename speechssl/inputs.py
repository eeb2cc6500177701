"""What can be extracted: audio files, folders, globs, lists, Kaldi's wav.scp, Lhotse manifests, prepared corpora.

Nothing that an input says is ever run. A line that can't be used is an error that names the file and the line.
"""

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from speechssl.audio import SUFFIXES
from speechssl.data.corpus import locate, open_corpus, read_manifest
from speechssl.errors import AudioError, ManifestError
from speechssl.text_files import read_lines
from speechssl.types import Utterance

logger = logging.getLogger(__name__)

Items = str | Path | Utterance | Iterable[str | Path | Utterance]
"""Audio files, folders (searched below; or a prepared corpus, or Kaldi's data), globs, lists, manifests, utterances."""
LISTS = (".txt", ".lst")
MANIFESTS = (".jsonl", ".jsonl.gz")


def resolve_items(items: Items) -> list[Utterance]:
    """Returns the utterances that `items` stand for, in order, each once.

    A path is, by its name: a Lhotse manifest of cuts or recordings (.jsonl, .jsonl.gz), Kaldi's wav.scp (.scp), a list
    of one path per line (.txt, .lst; 'id<TAB>path' names them), a folder, a glob, or else an audio file.

    A file's id is its name without suffix, below a folder its path within the folder; files of one name in different
    folders get their path instead.

    Raises:
        AudioError: a folder or glob without audio files.
        ManifestError: a list or manifest that can't be read, or different utterances with one id.
    """
    found: list[Utterance] = []
    for item in [items] if isinstance(items, str | Path | Utterance) else items:
        found.extend([item] if isinstance(item, Utterance) else _resolve_path(Path(item)))
    unique = list({(u.id, u.path, u.start, u.duration): u for u in found}.values())
    counts = Counter(u.id for u in unique)
    unique = [_named_by_path(u) if counts[u.id] > 1 else u for u in unique]
    for name, count in Counter(u.id for u in unique).items():
        if count > 1:
            raise ManifestError(f"{count} different utterances have the id '{name}': give each an id of its own.")
    return unique


def _resolve_path(path: Path) -> list[Utterance]:
    if path.is_dir():
        return _resolve_folder(path)
    if path.name.endswith(MANIFESTS):
        root = path.absolute().parent.parent
        return read_manifest(path, root=root if (root / "corpus.json").is_file() else None)
    if path.suffix == ".scp":
        return read_kaldi(path)
    if path.suffix in LISTS:
        return read_list(path)
    if glob.has_magic(str(path)) and not path.exists():
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  Path.glob takes no absolute pattern
        if not matches:
            raise AudioError(f"No file matches {path}: check the pattern.")
        return [u for match in matches for u in _resolve_path(Path(match))]
    return [Utterance(path.stem, str(path))]


def _resolve_folder(folder: Path) -> list[Utterance]:
    if (folder / "corpus.json").is_file():
        corpus = open_corpus(folder)
        return [u for split in ("train", "dev", "test") if split in corpus.splits() for u in corpus.utterances(split)]
    if (folder / "wav.scp").is_file():
        return read_kaldi(folder / "wav.scp")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise AudioError(f"The folder {folder} holds no audio files: name one that does.")
    return [Utterance(p.relative_to(folder).with_suffix("").as_posix(), str(p)) for p in files]


def _named_by_path(utterance: Utterance) -> Utterance:
    path = Path(utterance.path)
    if path.stem != Path(utterance.id).name:
        return utterance  # named by a manifest, not by its file
    return replace(utterance, id=os.path.relpath(path).replace(os.sep, "/").replace("../", ""))


def read_list(path: Path) -> list[Utterance]:
    """Reads one path, or 'id<TAB>path', per line; relative paths start at the list's folder or the working folder.

    Raises:
        ManifestError: missing, empty, not text, or a line that is neither.
    """
    found: list[Utterance] = []
    for where, line in read_lines(path):
        name, tab, source = line.rpartition("\t")
        if "\t" in name or (tab and not name.strip()):
            raise ManifestError(f"{where} must be a path, or an id, one tab and a path, but is '{line}': mend it.")
        audio = _audio_path(source.strip(), path.parent, where)
        found.append(Utterance(name.strip() or audio.stem, str(audio)))
    if not found:
        raise ManifestError(f"The list {path} is empty: write one path per line.")
    return found


def read_kaldi(path: Path) -> list[Utterance]:
    """Reads Kaldi's wav.scp, with `segments`, `text` and `utt2spk` where they stand beside it.

    Raises:
        ManifestError: missing, empty, a line that doesn't fit, or a command in place of a path, which is never run.
    """
    sources: dict[str, Path] = {}
    for where, line in read_lines(path):
        recording, source = _two(line, where, "an id and a path")
        if recording in sources:
            raise ManifestError(f"{where} has the id '{recording}' for the second time: ids must be unique.")
        sources[recording] = _audio_path(source, path.parent, where)
    if not sources:
        raise ManifestError(f"{path} is empty: write an id and a path per line.")
    segments = path.with_name("segments")
    if segments.is_file():
        found = list(_segments(segments, sources))
    else:
        found = [Utterance(name, str(source)) for name, source in sources.items()]
    labels = {"text": _table(path.with_name("text")), "speaker": _table(path.with_name("utt2spk"))}
    return [replace(u, labels={k: table[u.id] for k, table in labels.items() if u.id in table}) for u in found]


def _segments(path: Path, sources: dict[str, Path]) -> Iterator[Utterance]:
    """'utterance recording start end' per line, in seconds; an end of -1 is that of the recording."""
    used: set[str] = set()
    for where, line in read_lines(path):
        parts = line.split()
        try:
            name, recording, start, end = parts[0], parts[1], float(parts[2]), float(parts[3])
        except (IndexError, ValueError):
            raise ManifestError(
                f"{where} must be an utterance, a recording, a start and an end in seconds, but is '{line}': mend it."
            ) from None
        if recording not in sources:
            raise ManifestError(f"{where} names the recording '{recording}', which wav.scp beside it does not have.")
        if len(parts) > 4 or start < 0 or (end != -1 and not end > start):
            raise ManifestError(f"{where} must end after it starts, at 0 or later, but is '{line}': mend it.")
        used.add(recording)
        yield Utterance(name, str(sources[recording]), start, None if end == -1 else end - start)
    if len(used) < len(sources):
        logger.info("%s names no part of %d of %d recordings.", path, len(sources) - len(used), len(sources))


def _table(path: Path) -> dict[str, str]:
    """'key value' per line; a key alone has an empty value, as an utterance without words does in Kaldi's `text`."""
    if not path.is_file():
        return {}
    pairs = (line.strip().split(maxsplit=1) for _, line in read_lines(path))
    return {pair[0]: pair[1] if len(pair) > 1 else "" for pair in pairs}


def _audio_path(source: str, base: Path, where: str) -> Path:
    if source.endswith("|") or source.startswith("|"):
        raise ManifestError(
            f"{where} is a command ('{source}'), and running what a file says would let it do anything: "
            "run it yourself, and list the audio files it makes."
        )
    head, colon, offset = source.rpartition(":")
    if colon and offset.isdigit() and not Path(source).exists() and head.endswith(".ark"):
        raise ManifestError(f"{where} points into an archive ('{source}'): list audio files instead.")
    return locate(source, base)


def _two(line: str, where: str, what: str) -> tuple[str, str]:
    parts = line.strip().split(maxsplit=1)
    if len(parts) != 2:
        raise ManifestError(f"{where} must be {what}, but is '{line}': mend it.")
    return parts[0], parts[1]
