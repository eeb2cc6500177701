"""Files that are there whole or not at all, so that an interruption or a full disk never leaves half of one."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no room: no space, over quota, over the limit of a file's size."""


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yields a path to write to, and renames it to `path` at the end; on an error `path` stays as it was.

    Args:
        path: gets the permissions of any new file (those that the umask leaves), however it was written.
        sync: whether to wait until the disk has it, so that not even a power cut leaves an empty file.

    Raises:
        OSError: among others a full disk (see FULL); it names `path`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    with naming(path):
        try:
            partial.touch()
            mode = partial.stat().st_mode
            yield partial
            partial.chmod(mode)  # some writers make a file of their own that only its owner may read
            if sync:
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets an OSError from inside say which file it was about, where the system does not or names a temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or str(error.filename).endswith(".partial")):
            error.filename, error.filename2 = str(path), None
        raise
