"""Writes discrete units of audio files: what is not there yet, an utterance a line.

<folder>/units.json    upstream, layer, quantizer, frame rate (Hz), codebooks, entries, whether units are deduplicated
        /units.jsonl   per utterance: id, audio, start, duration, seconds, frames, units; durations where deduplicated
        /units.txt     'id|12 7 7 301' per utterance, of one codebook alone: the form of fairseq's GSLM
        /bad.tsv       id and reason of what was left out

`units` is a list of codes, or of lists of one code per codebook; `durations` has the frames of each. A line counts once
it is whole, and is made anew where its audio has changed.

Reference: fairseq `examples/textless_nlp/gslm/speech2unit/clustering/quantize_with_kmeans.py` for units.txt, fastabx's
`Dataset.from_item_and_units` for the names `audio` and `units`, which it reads where nothing is deduplicated.
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from speechssl.analysis.units import deduplicate
from speechssl.audio import content_hash
from speechssl.codes_upstream import CodesUpstream
from speechssl.errors import ManifestError, SpeechsslError
from speechssl.extraction import extract, measure, resolve_items
from speechssl.files import naming, replacing
from speechssl.forward import Precision
from speechssl.progress import progress
from speechssl.types import Utterance
from speechssl.unit_sources import UnitSource

FILE = "units.jsonl"


@dataclass
class UnitSummary:
    """What was written."""

    computed: int = 0
    kept: int = 0
    seconds: float = 0.0
    """Of audio computed now."""
    frames: int = 0
    units: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    """Utterance id -> reason."""
    audio_rate: float = 0.0
    """Seconds of audio computed per second."""


def write_units(
    source: UnitSource,
    inputs: Iterable[str],
    folder: Path,
    *,
    dedup: bool,
    batch_seconds: float = 60.0,
    workers: int = 2,
    precision: Precision = "float32",
    skip_bad: bool = False,
    chunk: float | None = None,
    context: float = 5.0,
    devices: Sequence[torch.device] = (),
) -> UnitSummary:
    """Extracts the units that `folder` does not hold yet.

    Args:
        dedup: whether equal neighbours become one unit, with its duration.
        chunk, context: see `extract`; a model's own quantizer and dMel take whole files only.
        devices: see `extract`.

    Raises:
        SpeechsslError: the folder holds units of another kind, or another process writes to it.
        AudioError: a bad file, unless `skip_bad`; what was finished is kept.
    """
    if chunk is not None and isinstance(source.upstream, CodesUpstream):
        raise SpeechsslError(f"`--chunk` does not go with units of {source.quantizer}: leave it out.")
    kind = {
        **_described(source), "deduplicated": dedup, "precision": precision,
        "chunk": chunk, "context": None if chunk is None else context,
    }  # fmt: skip
    _claim(folder, kind)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SpeechsslError(
            f"Another process is writing to {folder}: wait for it, or choose another folder."
        ) from error
    try:
        with replacing(folder / "units.json") as partial:
            partial.write_text(json.dumps(kind, indent=1), encoding="utf-8")
        return _write(source, resolve_items(inputs), folder, dedup, {
            "batch_seconds": batch_seconds, "workers": workers, "precision": precision, "skip_bad": skip_bad,
            "chunk": chunk, "context": context, "devices": devices,
        })  # fmt: skip
    finally:
        lock.release()


def _write(
    source: UnitSource, utterances: Sequence[Utterance], folder: Path, dedup: bool, how: dict[str, Any]
) -> UnitSummary:
    path, summary = folder / FILE, UnitSummary()
    rows = {row["id"]: row for row in _rows(path)}
    kept = {u.id: rows[u.id] for u in utterances if u.id in rows and _is_of(rows[u.id], u)}
    summary.kept = len(kept)
    todo = [u for u in utterances if u.id not in kept]
    durations = measure(todo, workers=how["workers"], skip_bad=how["skip_bad"], bad=summary.bad)
    todo = [u for u in todo if u.id in durations]
    begin = time.perf_counter()
    _rewrite(path, list(kept.values()))
    with (
        progress("Extracting units", sum(durations.values()), unit="s of audio") as advance,
        naming(path),
        path.open("a", encoding="utf-8") as file,
    ):
        for utterance, states in extract(source.upstream, todo, layers=[source.layer], bad=summary.bad, **how):
            row = _row(utterance, source.encode(states[source.layer]), durations[utterance.id], dedup)
            file.write(_line(row))
            kept[utterance.id] = row
            summary.computed += 1
            summary.seconds += durations[utterance.id]
            advance(durations[utterance.id])
    summary.audio_rate = summary.seconds / (time.perf_counter() - begin)
    ordered = [kept[u.id] for u in utterances if u.id in kept]
    summary.frames, summary.units = sum(r["frames"] for r in ordered), sum(len(r["units"]) for r in ordered)
    _rewrite(path, ordered)
    _finish(folder, ordered, source.groups, summary.bad)
    return summary


def read_units(folder: Path, *, dedup: bool = False) -> dict[str, Tensor]:
    """Units as `write_units` wrote them: id -> (T,) or (T, G) int64, one per frame unless `dedup`.

    Raises:
        ManifestError: there are none, or a line can't be read.
    """
    path = folder / FILE
    found = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ManifestError(f"There are no units at {path}: run `speechssl extract --units` first.") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            units = torch.tensor(row["units"], dtype=torch.int64)
            if "durations" in row and not dedup:
                units = units.repeat_interleave(torch.tensor(row["durations"]), dim=0)
            elif dedup and "durations" not in row:
                units = deduplicate(units)[0]
            found[row["id"]] = units
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ManifestError(
                f"{path}, line {number}, has no units that can be read ({error}): write it anew."
            ) from error
    return found


def _row(utterance: Utterance, codes: Tensor, seconds: float, dedup: bool) -> dict[str, Any]:
    frames = len(codes)
    lengths = None
    if dedup:
        codes, lengths = deduplicate(codes)
    row: dict[str, Any] = {
        "id": utterance.id, "audio": utterance.path, "start": utterance.start, "duration": utterance.duration,
        "hash": content_hash(utterance.path), "seconds": seconds, "frames": frames,
        "units": (codes[:, 0] if codes.size(1) == 1 else codes).tolist(),
    }  # fmt: skip
    return row if lengths is None else {**row, "durations": lengths.tolist()}


def _is_of(row: dict[str, Any], utterance: Utterance) -> bool:
    if (row["start"], row["duration"]) != (utterance.start, utterance.duration):
        return False
    try:
        return bool(row["hash"] == content_hash(utterance.path))
    except SpeechsslError:
        return False


def _rows(path: Path) -> list[dict[str, Any]]:
    """The lines that are whole."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            found.append({**row, "hash": row["hash"], "start": row["start"], "duration": row["duration"]})
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _rewrite(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(map(_line, rows))


def _finish(folder: Path, rows: Sequence[dict[str, Any]], groups: int, bad: dict[str, str]) -> None:
    if groups == 1:
        with replacing(folder / "units.txt") as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(f"{row['id']}|{' '.join(map(str, row['units']))}\n" for row in rows)
    if bad:
        with replacing(folder / "bad.tsv") as partial:
            partial.write_text("id\treason\n" + "".join(f"{i}\t{r}\n" for i, r in bad.items()), encoding="utf-8")
    else:
        (folder / "bad.tsv").unlink(missing_ok=True)


def _described(source: UnitSource) -> dict[str, object]:
    return {
        "upstream": source.upstream.name,
        "weights": source.upstream.weights,
        "fingerprint": source.fingerprint,
        "layer": source.layer,
        "quantizer": source.quantizer,
        "codebooks": source.groups,
        "entries": source.entries,
        "frame_rate": source.upstream.frame_rate,
    }


def _claim(folder: Path, kind: dict[str, object]) -> None:
    """What the folder holds must be what it is to hold."""
    path = folder / "units.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else kind
    except (FileExistsError, NotADirectoryError) as error:
        raise SpeechsslError(f"The output {folder} is not a folder: choose another.") from error
    except ValueError as error:
        raise SpeechsslError(f"{path} can't be read: choose another folder, or remove this one.") from error
    for key in kind.keys() - {"upstream", "weights", "quantizer"}:
        theirs = held.get(key) if isinstance(held, dict) else None
        if theirs != kind[key]:
            raise SpeechsslError(f"{folder} holds units with {key} {theirs}, not {kind[key]}: choose another folder.")
