"""Reads checkpoints that other toolkits pickled, without running anything that is in them.

torch's own restricted unpickler reads tensors and plain containers. Research checkpoints hold config objects besides
(`argparse.Namespace`, omegaconf containers, fairseq's dataclasses and enumerations): the names of their classes are
first read from the file without unpickling it, and each is then given an inert class that only keeps what it is told.
Every other name, such as `os.system`, is refused before anything is read.
"""

import _compat_pickle
import io
import pickletools
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from speechssl.errors import SpeechsslError

CONFIG_CLASSES = re.compile(
    r"argparse\.Namespace|omegaconf\..+|optimizers\.\w+|(fairseq|examples|s3prl|espnet|pytorch_lightning)\..+|pathlib\.(Pure)?(Posix|Windows)?Path"
    r"|typing\.\w+|enum\.\w+|builtins\.(bool|bytes|dict|float|frozenset|int|list|object|set|str|tuple)"
    r"|collections\.defaultdict|numpy\.(core|_core)\.multiarray\.scalar|numpy\.dtype"
)
"""What is replaced by inert classes; of builtins only types, which omegaconf notes beside its values."""
TORCHS_OWN = re.compile(r"torch\..+|collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(bytearray|complex)")
"""What is left to torch: it knows the harmless ones among them and refuses the others, by name."""
STREAMS = 5
"""Pickles at the head of a file of torch before 1.6: magic number, protocol, system, content, names of storages."""
MOST_NAMES = 5


class Inert:
    """Stands for an object whose class is not loaded: its arguments, state and items, and nothing that runs."""

    arguments: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]

    def __new__(cls, *arguments: Any, **_named: Any) -> "Inert":
        """Takes what the real class would; unpickling may leave `__init__` out."""
        self = super().__new__(cls)
        self.arguments, self.state, self.items = arguments, None, {}
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value


def read_pickled(path: str | Path) -> Any:
    """Reads a file of `torch.save`, of any version of torch.

    Returns:
        Tensors on the CPU and plain containers; config objects as what `plain` makes of them.

    Raises:
        SpeechsslError: no such file, or one that is damaged or holds anything else.
    """
    path = Path(path)
    names = _names(path)
    strange = sorted(n for n in names if not TORCHS_OWN.fullmatch(n))
    refused = [n for n in strange if not CONFIG_CLASSES.fullmatch(n)]
    if refused:
        raise SpeechsslError(_refusal(path, refused))
    inert: list[Any] = [(type(name.rsplit(".", 1)[-1], (Inert,), {"__module__": name}), name) for name in strange]
    try:
        with torch.serialization.safe_globals(inert):  # type: ignore[no-untyped-call]  # untyped in torch
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what the damage happens to cause
        if unknown := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
            raise SpeechsslError(_refusal(path, [unknown[1]])) from error
        first = (str(error).splitlines() or [type(error).__name__])[0].removesuffix(".")
        raise SpeechsslError(f"{path} is not a whole checkpoint of torch ({first}): download it again.") from error
    return plain(content)


def _refusal(path: Path, names: Sequence[str]) -> str:
    listed = ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
    return (
        f"{path} is refused, since it holds more than weights and settings ({listed}): "
        "save its weights alone, where it was made."
    )


def plain(content: Any) -> Any:
    """Replaces inert objects by the plain values they stand for, at any depth.

    A namespace or dataclass becomes the mapping of its fields, an omegaconf container its content, an enumeration its
    value, a path its parts joined; anything else its arguments.
    """
    if isinstance(content, Inert):
        return _plain_object(content)
    if isinstance(content, type):
        return content.__module__  # where a class itself is kept: its whole name, see `read_pickled`
    if isinstance(content, Mapping):
        return {plain(key): plain(value) for key, value in content.items()}
    if isinstance(content, list):
        return [plain(value) for value in content]
    if isinstance(content, tuple):
        return tuple(plain(value) for value in content)
    return content


def _plain_object(content: Inert) -> Any:
    state = content.state
    if isinstance(state, Mapping):
        for field in ("_content", "_val"):  # omegaconf's containers and values
            if field in state:
                return plain(state[field])
        return plain(state)
    if content.items or type(content).__module__ == "collections.defaultdict":
        return plain(content.items)
    if type(content).__module__.startswith("pathlib."):
        return "/".join(str(plain(a)) for a in content.arguments)
    if len(content.arguments) == 1:
        return plain(content.arguments[0])
    return plain(content.arguments) if content.arguments else None


def _names(path: Path) -> set[str]:
    """The classes and functions that a file names, read from its opcodes; nothing is unpickled."""
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                return _names_in_zip(path)
            file.seek(0)
            names: set[str] = set()
            for _ in range(STREAMS):
                names |= _names_in_stream(file)
            return names
    except FileNotFoundError as error:
        raise SpeechsslError(f"The checkpoint {path} does not exist: check the path.") from error
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError, UnpicklingError) as error:
        raise SpeechsslError(f"{path} is no checkpoint that torch saved, or is cut off: download it again.") from error


def _names_in_zip(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
        if any(m.endswith("/constants.pkl") for m in members):
            raise SpeechsslError(f"{path} is a TorchScript program, no checkpoint: name the weights it was made from.")
        found = [m for m in members if m.endswith("/data.pkl") or m == "data.pkl"]
        if not found:
            raise ValueError("no data.pkl")
        return set().union(*(_names_in_stream(io.BytesIO(archive.read(m))) for m in found))


def _names_in_stream(stream: Any) -> set[str]:
    names: set[str] = set()
    for opcode, argument, _position in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            module, name = str(argument).split(" ", 1)
            # Protocols up to 2 use the names of Python 2.
            module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
            names.add(f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}")
        elif opcode.name in {"INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"}:
            raise UnpicklingError(opcode.name)
    return names
