"""Files that are there whole or not at all, so that an interruption or a full disk never leaves half of one."""

import errno
import io
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from speechssl.errors import SpeechsslError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no room: no space, over quota, over the limit of a file's size."""

_MEMBER = re.compile(r"(.+\.tar)\?offset=(\d+)&size=(\d+)")


def default_folder() -> Path:
    """Where what can be made again is kept: $SPEECHSSL_CACHE, or ~/.cache/speechssl."""
    return Path(os.environ.get("SPEECHSSL_CACHE") or "~/.cache/speechssl").expanduser()


def member_path(archive: Path, offset: int, size: int) -> str:
    """How a file inside an uncompressed .tar is named wherever a path is: '<archive>.tar?offset=1536&size=20480'."""
    return f"{archive}?offset={offset}&size={size}"


def split_member(path: str | Path) -> tuple[Path, int, int] | None:
    """Archive, offset and size of what `member_path` named; None = an ordinary path."""
    found = _MEMBER.fullmatch(str(path))
    return None if found is None else (Path(found[1]), int(found[2]), int(found[3]))


def open_binary(path: Path) -> BinaryIO:
    """Opens a file, or what `member_path` names, for reading."""
    member = split_member(path)
    if member is None:
        return path.open("rb")
    archive, offset, size = member
    with archive.open("rb", buffering=0) as file:
        return io.BytesIO(os.pread(file.fileno(), size, offset))


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
    """Lets an OSError from inside say which file it was about, where the system does not or names a temporary one.

    A full disk is an OSError then, whatever the writing library made of it.
    """
    try:
        yield
    except Exception as error:
        found = disk_full(error) or error
        if isinstance(found, OSError) and found.errno is not None:
            if found.filename is None or str(found.filename).endswith(".partial"):
                found.filename, found.filename2 = str(path), None
            if found is not error:
                raise found from error
        raise


def disk_full(error: BaseException) -> OSError | None:
    """The full disk that an error or one of its causes is about, or None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return seen
        told = re.search(r"\(os error (\d+)\)", str(seen))  # safetensors
        if told and int(told[1]) in FULL:
            return OSError(int(told[1]), os.strerror(int(told[1])))
        if "PytorchStreamWriter failed writing" in str(seen):  # torch.save; it has forgotten the number
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        seen = seen.__cause__ or seen.__context__
    return None


def check_writable(folder: Path) -> None:
    """Makes the folder, and sees that files can be written to it.

    Raises:
        SpeechsslError: they can't, and why.
    """
    for part in (folder, *folder.parents):
        if part.is_file():
            raise SpeechsslError(f"{part} is a file, but must be a folder: choose another `--output`.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SpeechsslError(
            f"The output folder {folder} can't be written to ({error.strerror}): choose another with `--output`."
        ) from error
