"""The folder of the feature cache: a folder per upstream, what they hold, and eviction.

<folder>/<upstream fingerprint>/upstream.json      name, weights
                               /<pack>.bin, .jsonl see `speechssl.packs`; a pack's time of change is its last use
                               /leases/            see `speechssl.leases`
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from speechssl.errors import SpeechsslError
from speechssl.leases import leased
from speechssl.packs import pack_bytes, remove_pack
from speechssl.upstream import Upstream

logger = logging.getLogger(__name__)
FORMAT = 1


@dataclass(frozen=True)
class CacheEntry:
    """What the cache holds of one upstream."""

    name: str
    weights: str
    fingerprint: str
    packs: int
    gigabytes: float
    last_used: float
    """Seconds since the epoch."""
    in_use: bool
    """Whether a living process reads or writes one of its packs."""


def make_upstream_folder(root: Path, upstream: Upstream) -> Path:
    """Makes the folder of an upstream where there is none.

    Raises:
        SpeechsslError: it can't be written.
    """
    folder = root / upstream.fingerprint()
    try:
        (folder / "leases").mkdir(parents=True, exist_ok=True)
        about = {"format": FORMAT, "name": upstream.name, "weights": upstream.weights}
        (folder / "upstream.json").write_text(json.dumps(about), encoding="utf-8")
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise SpeechsslError(
            f"The feature cache {root} can't be written ({error.strerror}): choose another folder."
        ) from error
    return folder


def list_entries(root: Path) -> list[CacheEntry]:
    """What the cache holds, per upstream, last used first."""
    found = []
    for folder in _upstream_folders(root):
        name, weights = _about(folder)
        packs = list(folder.glob("*.bin"))
        if packs:
            size = sum(map(pack_bytes, packs)) / 1e9
            in_use = bool(leased(folder / "leases"))
            found.append(CacheEntry(name, weights, folder.name, len(packs), size, max(map(_last_used, packs)), in_use))
    return sorted(found, key=lambda e: -e.last_used)


def evict(root: Path, budget: float) -> tuple[int, int]:
    """Removes least recently used packs that nobody holds until `budget` bytes are left.

    Returns:
        bytes freed, and bytes left.
    """
    packs = sorted((p for f in _upstream_folders(root) for p in f.glob("*.bin")), key=_last_used)
    total, freed = sum(map(pack_bytes, packs)), 0
    for path in packs:
        if total - freed <= budget:
            break
        with FileLock(path.parent / "index.lock"):
            if path.name not in leased(path.parent / "leases"):
                freed += pack_bytes(path)
                remove_pack(path)
    if freed:
        logger.info("Evicted %.2f GB of features from %s.", freed / 1e9, root)
    return freed, total - freed


def _upstream_folders(root: Path) -> list[Path]:
    return sorted(p.parent for p in root.glob("*/upstream.json"))


def _about(folder: Path) -> tuple[str, str]:
    try:
        about: dict[str, Any] = json.loads((folder / "upstream.json").read_text(encoding="utf-8"))
        return str(about["name"]), str(about["weights"])
    except (KeyError, TypeError, ValueError):
        return "?", "?"


def _last_used(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0
