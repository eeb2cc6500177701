"""Checkpoints of a pre-training run: safetensors for tensors, JSON for the rest, whole or not there at all.

checkpoints/step-00001000/tensors.safetensors    model.*, optimizer.<number>.<name>, window.*
checkpoints/step-00001000/state.json             step, position in the data, settings, checksum of the tensors

They hold whole tensors by name, so that any number of processes and either strategy goes on from any of them.
"""

import json
import logging
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from speechssl.checkpoint import save_tensors
from speechssl.config import first_difference
from speechssl.errors import ConfigError, SpeechsslError

logger = logging.getLogger(__name__)
FORMAT = 1
TENSORS = "tensors.safetensors"
STATE = "state.json"
UNFINISHED = (".partial", ".removed")
"""Endings of folders that an interruption may leave behind."""
BLOCK = 1 << 24
"""Bytes that are read at once for the checksum."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on."""

    step: int
    """Updates that were made."""
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Writes a checkpoint below `folder` and removes all but the last `keep`; returns its path.

    One of the same step that can be read is left as it is, since a run makes it but once.

    Raises:
        OSError: among others a full disk; those that were there stay.
    """
    path = folder / f"step-{checkpoint.step:08d}"
    if _read(path) is not None:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        if left.suffix in UNFINISHED:
            shutil.rmtree(left, ignore_errors=True)
    partial = folder / f".{path.name}.partial"
    partial.mkdir()
    try:
        save_tensors(checkpoint.tensors, partial / TENSORS)
        state = {"format": FORMAT, "step": checkpoint.step, "crc32": _checksum(partial / TENSORS), **checkpoint.state}
        (partial / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        for file in (partial / STATE, partial):
            _sync(file)
        _remove(path)  # a damaged one
        partial.replace(path)
        _sync(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in list_checkpoints(folder)[:-keep]:
        _remove(old)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints below `folder`, oldest first."""
    return sorted(folder.glob("step-*"))


def last_checkpoint(folder: Path) -> Checkpoint | None:
    """Reads the newest checkpoint that is whole; a damaged one is logged and passed over.

    Raises:
        SpeechsslError: there are checkpoints, but none can be read.
    """
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        found = _read(path, tell=True)
        if found is not None:
            return found
    if paths:
        raise SpeechsslError(f"No checkpoint in {folder} can be read: remove the folder to begin again.")
    return None


def check_identity(saved: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Sees that a run goes on with the settings and data that it was begun with.

    Raises:
        ConfigError: with the first that differs.
    """
    different = first_difference(saved, wanted)
    if different is not None:
        key, old, new = different
        raise ConfigError(
            f"The run in {folder} was begun with {key}={old}, not {new}: "
            "use the same settings to go on, or another folder."
        )


def pack(module: nn.Module, optimizer: torch.optim.Optimizer, *, keep: bool = True) -> dict[str, Tensor]:
    """Weights and optimiser state as flat names, whole and on the CPU.

    Args:
        keep: False = nothing is returned. Where weights are sharded every process must call this, but one saves.
    """
    tensors = {f"model.{name}": value for name, value in module.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value)
    gathered: dict[str, Tensor] = {}
    for name, value in tensors.items():
        full = whole(value)
        if keep:
            gathered[name] = full.cpu() if full.device.type != "cpu" else full.clone()
    return gathered


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; then every process must call this."""
    full: Any = getattr(tensor, "full_tensor", None)
    return tensor.detach() if full is None else full().detach()


def unpack(tensors: Mapping[str, Tensor], module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts back what `pack` took, each process its own part.

    Raises:
        SpeechsslError: the checkpoint is of another model.
    """
    targets = module.state_dict()
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    try:
        module.load_state_dict({k: _part(v, targets.get(k)) for k, v in weights.items()})
    except RuntimeError as error:
        raise SpeechsslError(
            f"The checkpoint is of another model ({str(error).splitlines()[-1].strip()}): choose another output folder."
        ) from error
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".", 2)
            states.setdefault(int(number), {})[name] = _part(value, parameters[int(number)])
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _part(full: Tensor, like: Tensor | None) -> Tensor:
    """What of a tensor belongs to this process, if `like` is sharded and of the same shape."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or full.shape != like.shape:
        return full
    # Every process has read the same file: none needs to be sent anything.
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _read(path: Path, *, tell: bool = False) -> Checkpoint | None:
    """None where there is no checkpoint that is whole."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if state.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        if state.pop("crc32") != _checksum(path / TENSORS):
            raise ValueError(f"the checksum of {TENSORS} is another")
        return Checkpoint(state.pop("step"), load_file(path / TENSORS), state)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        if tell:
            logger.warning("The checkpoint %s can't be read (%s): going back to the one before.", path, error)
        return None


def _remove(path: Path) -> None:
    """At once, as far as `list_checkpoints` can tell."""
    if path.exists():
        removed = path.with_name(f".{path.name}.removed")
        path.replace(removed)
        shutil.rmtree(removed)


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            total = zlib.crc32(block, total)
    return total


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
