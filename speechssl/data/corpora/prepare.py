"""Writes a published corpus as a prepared corpus.

corpus.json                      as `speechssl.data.corpus` says; 'files' names the lists
manifests/<split>.jsonl.gz       Lhotse MonoCuts; the paths of the audio are absolute, since it stays where it is
lists/<name>.txt                 trials and the like, in the ids of the manifests
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechssl.config import to_dict
from speechssl.data.corpora.audit import Row, audit_rows, find_missing, settings_of
from speechssl.data.corpora.base import CorpusModule, Item, Reading, corpus_module
from speechssl.data.corpora.writing import (
    Length,
    hash_file,
    is_whole,
    relative,
    why_unfit,
    write_lists,
    write_manifests,
)
from speechssl.data.corpus import FORMAT
from speechssl.errors import ManifestError
from speechssl.files import replacing
from speechssl.progress import progress

logger = logging.getLogger(__name__)
REVISION = 1
"""Raised when a module or this one gives something else than before, so that finished corpora are made again."""
CHUNK = 128  # files that a thread opens in one go
HOURS_OFF = 0.02  # share by which hours may differ from the published ones, which are rounded
NAMED = 20  # files left out that corpus.json names


def prepare_corpus(
    name: str,
    source: str | Path,
    folder: str | Path,
    *,
    config: str | Path | None = None,
    skip_bad: bool = False,
    workers: int = 8,
) -> dict[str, Any]:
    """Writes the manifests of the corpus that lies in `source`; one that is finished is left as it is.

    Args:
        folder: of the prepared corpus; the audio is not copied there.
        config: YAML file with the differences from the corpus's settings.
        skip_bad: whether files that are missing or unreadable are left out and counted.
        workers: threads that read headers.

    Returns:
        What corpus.json holds.

    Raises:
        ManifestError: `source` does not hold the corpus, one of its lists is malformed, or audio is missing or
            unreadable without `skip_bad`.
    """
    module, root, source = corpus_module(name), Path(folder), Path(source).absolute()
    settings = settings_of(module, name, config)
    _check_folder(root, name)
    reading = module.read(source, settings)
    made_of = {
        "config": json.loads(json.dumps(to_dict(settings))),
        "from": str(source),
        "listing": _listing(reading, source),
        "revision": REVISION,
    }
    done = _finished(root, made_of)
    if done is not None:
        logger.info("The corpus %s is already there, made of the same files with the same config", root)
        return done
    found = _find_audio(reading, module.NAME, source, skip_bad=skip_bad, workers=workers)
    (root / "corpus.json").unlink(missing_ok=True)
    written = write_manifests(root, reading.splits, found.lengths, source)
    _log_hours(reading, written.splits)
    lists, dropped = _without_the_lost(reading, found)
    info = {
        "format": FORMAT,
        "name": name,
        "source": "published",
        "fingerprint": written.fingerprint,
        "sources": [_source_row(module, name, reading, found, dropped)],
        "splits": written.splits,
        "notes": {note.what: note.count for note in reading.notes},
        "files": write_lists(root, lists),
        "manifests": written.hashes,
        "bad": [*found.lost[:NAMED], *list(found.unreadable.values())[:NAMED]],
        **made_of,
    }
    with replacing(root / "corpus.json") as partial:
        partial.write_text(json.dumps(info, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return info


def _check_folder(root: Path, name: str) -> None:
    """Refuses to write over another corpus, and makes the folder."""
    if (root / "corpus.json").is_file():
        try:
            other = json.loads((root / "corpus.json").read_text(encoding="utf-8")).get("name")
        except (ValueError, AttributeError):
            other = name  # damaged: it is made again
        if other != name:
            raise ManifestError(f"{root} holds the corpus '{other}': choose another folder for '{name}'.")
    (root / "manifests").mkdir(parents=True, exist_ok=True)


def _finished(root: Path, made_of: Mapping[str, Any]) -> dict[str, Any] | None:
    """What corpus.json holds, if the corpus is whole, made of this, and nothing had been left out."""
    try:
        info: dict[str, Any] = json.loads((root / "corpus.json").read_text(encoding="utf-8"))
        same = all(info[key] == value for key, value in made_of.items()) and not info["bad"]
        hashes = {s: hash_file(root / "manifests" / f"{s}.jsonl.gz") for s in info["manifests"]}
        lists = all((root / path).is_file() for path in info["files"].values())
        return info if same and lists and hashes == info["manifests"] else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _listing(reading: Reading, source: Path) -> str:
    """A hash of everything that `read` found."""
    digest = hashlib.sha256()
    for split, items in reading.splits.items():
        digest.update(f"{split}\n".encode())
        for item in items:
            values = [item.id, relative(item.path, source), item.start, item.duration, item.pieces, dict(item.labels)]
            digest.update(json.dumps(values, ensure_ascii=False, sort_keys=True).encode())
    digest.update(json.dumps({name: list(lines) for name, lines in reading.files.items()}).encode())
    return digest.hexdigest()


def _log_deviations(rows: Iterable[Row]) -> None:
    for row in rows:
        if row.fault or row.expected is None:
            examples = f", such as {row.examples[0]}" if row.examples else ""
            wanted = "" if row.expected is None else f" of {row.expected}"
            logger.warning("%s: %d%s%s", row.what, row.found, wanted, examples)


def _log_hours(reading: Reading, splits: Mapping[str, Mapping[str, Any]]) -> None:
    for split, count in reading.expected.items():
        found = splits.get(split, {}).get("hours", 0.0)
        if count.hours is not None and split in splits and abs(found - count.hours) > HOURS_OFF * count.hours:
            logger.warning("%s: %.2f hours, where %.1f are published", split, found, count.hours)


@dataclass(frozen=True)
class _Found:
    """What is known of the audio files."""

    lengths: Mapping[str, Length]
    """Of those that can be read."""
    lost: Sequence[str]
    """Paths of those that are not there, sorted."""
    unreadable: Mapping[str, str]
    """Path, or id of an utterance -> what is wrong."""


def _find_audio(reading: Reading, name: str, source: Path, *, skip_bad: bool, workers: int) -> _Found:
    """Looks for all files, and reads their headers.

    Raises:
        ManifestError: some are missing or unusable, and `skip_bad` is False.
    """
    missing = find_missing(reading)
    _log_deviations(audit_rows(reading, missing))
    lost = sorted({path for paths in missing.values() for path in paths})
    if lost and not skip_bad:
        raise ManifestError(
            f"{len(lost)} audio files of {name} are missing below {source}, the first is {lost[0]}: fetch them "
            "(--audit shows the counts), or leave them out with --skip-bad."
        )
    gone = frozenset(lost)
    items = [i for split in reading.splits.values() for i in split if gone.isdisjoint(i.files())]
    lengths, unreadable = _measure(items, workers)
    if unreadable and not skip_bad:
        raise ManifestError(
            f"{len(unreadable)} audio files of {name} can't be used. Of the first: {next(iter(unreadable.values()))} "
            "Fetch such files again, or leave them out with --skip-bad."
        )
    return _Found(lengths, lost, unreadable)


def _measure(items: Sequence[Item], workers: int) -> tuple[dict[str, Length], dict[str, str]]:
    """Path -> length of the files that can be read, and path (or id, if it is but one part) -> what is wrong."""
    paths = list(dict.fromkeys(path for item in items for path in item.files()))
    lengths: dict[str, Length] = {}
    unreadable: dict[str, str] = {}
    chunks = [paths[k : k + CHUNK] for k in range(0, len(paths), CHUNK)]
    with ThreadPoolExecutor(workers) as pool, progress("Reading headers", len(paths), unit="files") as advance:
        for chunk, results in zip(chunks, pool.map(_headers, chunks), strict=True):
            for path, result in zip(chunk, results, strict=True):
                if isinstance(result, Length):
                    lengths[path] = result
                else:
                    unreadable[path] = result
            advance(len(chunk))
    unfit = {i.id: why_unfit(i, lengths) for i in items if all(path in lengths for path in i.files())}
    return lengths, unreadable | {name: reason for name, reason in unfit.items() if reason}


def _headers(paths: Sequence[str]) -> list[Length | str]:
    return [_header(path) for path in paths]


def _header(path: str) -> Length | str:
    import soundfile

    try:
        if not Path(path).stat().st_size:
            return f"{path} is an empty file of 0 bytes."
        info = soundfile.info(path)
    except OSError as error:
        return f"{path} can't be opened ({error.strerror})."
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: soundfile takes .raw for headerless samples
        return f"{path} can't be read as audio ({' '.join(str(error).split()).rstrip('.')})."
    return Length(info.frames, info.samplerate) if info.frames > 0 else f"{path} holds no samples."


def _without_the_lost(reading: Reading, found: _Found) -> tuple[dict[str, list[str]], dict[str, int]]:
    """The lists without lines that name an utterance that is left out, and how many such lines each had."""
    if not found.lost and not found.unreadable:
        return {name: list(lines) for name, lines in reading.files.items()}, {}
    items = [item for split in reading.splits.values() for item in split]
    gone = frozenset(item.id for item in items if not is_whole(item, found.lengths))
    kept = {name: [x for x in lines if gone.isdisjoint(x.split())] for name, lines in reading.files.items()}
    dropped = {name: len(lines) - len(kept[name]) for name, lines in reading.files.items()}
    return kept, {name: count for name, count in dropped.items() if count}


def _source_row(
    module: CorpusModule, name: str, reading: Reading, found: _Found, dropped: Mapping[str, int]
) -> dict[str, Any]:
    """Name, licence, hours and counts, each file once however many splits it is in."""
    used = {i.path for items in reading.splits.values() for i in items if is_whole(i, found.lengths)}
    seconds = sum(found.lengths[path].samples / found.lengths[path].sample_rate for path in used)
    skipped = {"missing": len(found.lost), "unreadable": len(found.unreadable)}
    skipped |= {f"lines of {list_}": count for list_, count in dropped.items()}
    return {
        "name": name,
        "title": module.NAME,
        "homepage": module.HOMEPAGE,
        "licence": module.LICENCE,
        "hours": round(seconds / 3600, 4),
        "utterances": len(used),
        "skipped": {why: count for why, count in skipped.items() if count},
    }
