"""Finds upstream families and downstream tasks: the folder is the registration.

`upstreams/<family>/` and `downstreams/<task>/` are found by folder, third-party packages by the entry-point groups
`speechssl.upstreams` and `speechssl.downstreams`. Listing imports only the torch-free `config` modules; loading one
family imports only that family, so one broken family never breaks the rest.

A family folder holds `config.py` with `PRESETS: dict[str, Config]` (public names that begin with the folder's name)
and `model.py` with `build(config) -> Upstream`. A task folder holds `config.py` with `PRESETS` and `task.py` with
`TASK`, a subclass of `speechssl.task.Task`; a folder with `suite.py` is no task but names several (`speechssl.suite`).
A folder `upstreams/<name>/` with a `config.json` is no family but one upstream that comes with the package, weights and
all, as `speechssl.checkpoint.save_upstream` wrote it; a vocoder on its features may be in `vocoder` there.
"""

import importlib
import importlib.util
import json
import logging
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from speechssl.config import from_dict
from speechssl.errors import SpeechsslError, UnknownNameError

logger = logging.getLogger(__name__)


@cache
def _packages(kind: str) -> dict[str, str]:
    """Maps each family (or task) name to its import path; `kind` is 'upstreams' or 'downstreams'."""
    spec = importlib.util.find_spec(kind)
    ours = Path(__file__).resolve().parent.parent / kind
    if spec is None or not spec.submodule_search_locations:
        raise SpeechsslError(f"The package '{kind}' is missing beside speechssl ({ours}): install speechssl again.")
    found = Path(next(iter(spec.submodule_search_locations))).resolve()
    if found != ours:
        raise SpeechsslError(
            f"Another package named '{kind}' ({found}) hides speechssl's own ({ours}): rename or uninstall it."
        )
    names = {m.name: f"{kind}.{m.name}" for m in pkgutil.iter_modules([str(ours)]) if m.ispkg}
    for point in entry_points(group=f"speechssl.{kind}"):
        names.setdefault(point.name, point.value)
    return dict(sorted(names.items()))


def list_families() -> list[str]:
    """The names of the upstream families."""
    return list(_packages("upstreams"))


def list_tasks() -> list[str]:
    """The names of the downstream tasks."""
    suites = list_suites()
    return [name for name in _packages("downstreams") if name not in suites]


@cache
def list_suites() -> tuple[str, ...]:
    """The folders of `downstreams` that hold no task but several of them, in `suite.py`."""
    ours = Path(__file__).resolve().parent.parent / "downstreams"
    return tuple(sorted(path.parent.name for path in ours.glob("*/suite.py")))


def suite_module(folder: str) -> ModuleType:
    """Imports `suite.py` of such a folder."""
    return _module("downstreams", "suite", folder, "suite")


def list_upstreams() -> list[str]:
    """The names of all presets of all upstream families, and of what is shipped trained.

    A family that can't be imported is logged and left out.
    """
    names: list[str] = list(list_shipped())
    for family in list_families():
        try:
            names.extend(family_module(family, "config").PRESETS)
        except Exception as error:
            logger.warning("Upstream family '%s' can't be imported and is left out: %s", family, error)
    return sorted(names)


@cache
def list_shipped() -> dict[str, Path]:
    """The upstreams that come with the package, weights and all: name -> folder."""
    ours = Path(__file__).resolve().parent.parent / "upstreams"
    return {path.parent.name: path.parent for path in sorted(ours.glob("*/config.json"))}


def shipped_vocoders() -> dict[str, Path]:
    """The vocoders that come with the package, in `vocoder` beside the upstream that each reads: its name -> folder."""
    found = {name: folder / "vocoder" for name, folder in list_shipped().items()}
    return {name: folder for name, folder in found.items() if (folder / "config.json").is_file()}


def family_module(family: str, module: str) -> ModuleType:
    """Imports one module of an upstream family, such as ('hubert', 'model')."""
    return _module("upstreams", "upstream family", family, module)


def task_module(task: str, module: str) -> ModuleType:
    """Imports one module of a downstream task, such as ('asr', 'task')."""
    return _module("downstreams", "task", task, module)


def _module(kind: str, label: str, name: str, module: str) -> ModuleType:
    packages = _packages(kind)
    if name not in packages:
        raise UnknownNameError(label, name, packages)
    return importlib.import_module(f"{packages[name]}.{module}")


def find_preset(name: str) -> tuple[str, Any]:
    """Returns (family, config) of a public upstream name such as 'hubert_base'.

    Raises:
        UnknownNameError: no family has this preset; near matches are named.
    """
    if (folder := list_shipped().get(name)) is not None:
        path = folder / "config.json"
        return read_config(json.loads(path.read_text(encoding="utf-8")), origin=str(path))
    families = [f for f in list_families() if name == f or name.startswith(f + "_")]
    for family in sorted(families, key=len, reverse=True):
        presets = family_module(family, "config").PRESETS
        if name in presets:
            return family, presets[name]
    raise UnknownNameError("upstream", name, list_upstreams())


def read_config(description: Mapping[str, Any], *, origin: str) -> tuple[str, Any]:
    """Returns (family, config) of a saved upstream's `config.json`.

    Raises:
        SpeechsslError: it is none, or a setting is unknown; the message starts from `origin`.
    """
    family = str(description["family"])
    known = family_module(family, "config")  # a family without presets names the class of its config
    default = type(next(iter(known.PRESETS.values())))() if known.PRESETS else known.CONFIG()
    settings = description.get("config", {})
    if not isinstance(settings, dict):
        raise SpeechsslError(f"'config' in {origin} must be a mapping: write or download the folder again.")
    return family, from_dict(default, settings, origin=origin)
