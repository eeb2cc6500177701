"""Leases: which files of a folder living processes use, so that others leave them alone.

A lease is a list of names beside a file lock that its owner holds; the system frees the lock when the process ends,
however it ends, so that no lease outlives its owner.
"""

import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock, Timeout


class Lease:
    """The names that one user within this process holds, until `release`."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: the `leases` folder, which must exist.
        """
        self.names: set[str] = set()
        self._list = folder / f"{uuid.uuid4().hex}.txt"
        # Not per thread: the garbage collector may release it from any.
        self._lock = FileLock(self._list.with_suffix(".lock"), thread_local=False)
        self._owner = os.getpid()
        self._lock.acquire()

    def add(self, names: Iterable[str]) -> None:
        """Holds `names` too."""
        self.names |= set(names)
        self._list.write_text("\n".join(sorted(self.names)), encoding="utf-8")

    def release(self) -> None:
        """Ends the lease; without effect in a forked child, whose parent still holds it."""
        if os.getpid() == self._owner:
            self._list.unlink(missing_ok=True)
            self._lock.release()
            Path(self._lock.lock_file).unlink(missing_ok=True)


def leased(folder: Path) -> set[str]:
    """The names that living processes hold; what dead ones left behind is removed."""
    names: set[str] = set()
    for listing in folder.glob("*.txt"):
        lock = FileLock(listing.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            names |= _names(listing)
            continue
        listing.unlink(missing_ok=True)
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)
    return names


def _names(listing: Path) -> set[str]:
    try:
        return set(listing.read_text(encoding="utf-8").split("\n"))
    except FileNotFoundError:  # released meanwhile
        return set()
