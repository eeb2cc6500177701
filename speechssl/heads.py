"""The weights of pre-training that a checkpoint holds besides its upstream's: quantizers, projections, teachers.

Upstreams leave them out; a run that goes on from a checkpoint keeps them where they are there.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from speechssl import hub
from speechssl.checkpoint import CONFIG_FILE, read_file, read_json, read_weights, save_tensors
from speechssl.fairseq_format import has_settings, is_fairseq, open_fairseq
from speechssl.registry import family_module, find_preset, list_shipped

logger = logging.getLogger(__name__)
HEADS_FILE = "heads.safetensors"
"""Beside an upstream of ours, written when its pre-training ends."""


def save_heads(heads: Mapping[str, Tensor], folder: Path) -> None:
    """Writes what an objective holds besides its upstream; nothing where it holds nothing."""
    if heads:
        save_tensors(heads, folder / HEADS_FILE)


def adopt_heads(objective: nn.Module, weights: Mapping[str, Tensor], *, origin: str) -> list[str]:
    """Puts a checkpoint's heads into an objective, and logs what is new.

    Args:
        objective: of which everything but `upstream` is a head.
        weights: by our names; those that don't fit are passed over.
        origin: the checkpoint, named in the log.

    Returns:
        The names of those that were found and fit.
    """
    own = {name: value for name, value in objective.state_dict().items() if not name.startswith("upstream.")}
    fitting = {}
    for name, value in own.items():
        theirs = weights.get(name)
        if theirs is not None and theirs.numel() == value.numel() and theirs.squeeze(0).shape[-1:] == value.shape[-1:]:
            fitting[name] = theirs.reshape(value.shape)
    with torch.no_grad():
        for name, value in fitting.items():
            own[name].copy_(value)
    new = sorted(own.keys() - fitting.keys())
    if new:
        logger.warning("%s has none of these weights that fit, which begin anew: %s.", origin, ", ".join(new))
    elif own:
        logger.info("All that the objective adds goes on from %s.", origin)
    return sorted(fitting)


def read_heads(reference: str | Path) -> dict[str, Tensor]:
    """Reads all weights of a checkpoint, by the names that they have in it.

    Args:
        reference: as `load_upstream` takes it.

    Returns:
        The upstream's weights too where they are in the same file; empty for a folder of ours without heads, and where
        the format has no place for them.
    """
    path, name = Path(reference).expanduser(), str(reference)
    if path.is_dir():
        return _of_folder(path)
    if path.is_file():
        content = read_file(path)
        readable = is_fairseq(content) and has_settings(content)
        return dict(open_fairseq(content, origin=name).state) if readable else {}
    if "/" in name and ":" not in name:
        return _of_repository(name)
    if (shipped := list_shipped().get(name)) is not None:
        return _of_folder(shipped)
    repository = None
    if ":" not in name:
        family, _ = find_preset(name)
        repository = getattr(family_module(family, "config"), "REPOSITORIES", {}).get(name)
    return {} if repository is None else _of_repository(repository)


def _of_repository(reference: str) -> dict[str, Tensor]:
    repository, revision = hub.split_revision(reference)
    owner, project, *inside = Path(repository).parts
    if inside:
        return read_heads(hub.download_file(f"{owner}/{project}", "/".join(inside), revision=revision))
    return _of_folder(hub.download(repository, revision=revision))


def _of_folder(folder: Path) -> dict[str, Tensor]:
    if (folder / HEADS_FILE).is_file():
        return load_file(folder / HEADS_FILE)
    return {} if "family" in read_json(folder / CONFIG_FILE) else read_weights(folder)
