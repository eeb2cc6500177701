"""Checkpoints of a pre-training run: safetensors for tensors, JSON for the rest, whole or not there at all.

checkpoints/step-00001000/tensors.safetensors    model.*, optimizer.<number>.<name>, window.*
checkpoints/step-00001000/state.json             step, position in the data, settings
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from speechssl.checkpoint import save_tensors
from speechssl.errors import SpeechsslError

logger = logging.getLogger(__name__)
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on."""

    step: int
    """Updates that were made."""
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Writes a checkpoint below `folder` and removes all but the last `keep`; returns its path."""
    path = folder / f"step-{checkpoint.step:08d}"
    partial = folder / f".{path.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_tensors(checkpoint.tensors, partial / "tensors.safetensors")
        state = {"format": FORMAT, "step": checkpoint.step, **checkpoint.state}
        (partial / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        for file in (*partial.iterdir(), partial):
            _sync(file)
        shutil.rmtree(path, ignore_errors=True)
        partial.replace(path)
        _sync(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
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
        try:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            if state.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            return Checkpoint(state.pop("step"), load_file(path / "tensors.safetensors"), state)
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            logger.warning("The checkpoint %s can't be read (%s): going back to the one before.", path, error)
    if paths:
        raise SpeechsslError(f"No checkpoint in {folder} can be read: remove the folder to begin again.")
    return None


def pack(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and optimiser state as flat names, on the CPU."""
    tensors = {f"model.{name}": value.detach().cpu().clone() for name, value in module.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value).detach().cpu().clone()
    return tensors


def unpack(tensors: Mapping[str, Tensor], module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts back what `pack` took.

    Raises:
        SpeechsslError: the checkpoint is of another model.
    """
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise SpeechsslError(
            f"The checkpoint is of another model ({str(error).splitlines()[-1].strip()}): choose another output folder."
        ) from error
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".", 2)
            states.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
