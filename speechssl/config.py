"""Typed configuration: a frozen dataclass, a YAML file that holds only differences, and `a.b=c` overrides.

An unknown key is an error that names the near matches; values are checked against the dataclass's types by OmegaConf.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from speechssl.errors import ConfigError, suggest

ConfigT = TypeVar("ConfigT")


def load_config(default: ConfigT, *, yaml: str | Path | None = None, overrides: Sequence[str] = ()) -> ConfigT:
    """Returns a copy of `default` with the YAML file and then the overrides applied.

    Args:
        default: an instance of a (possibly nested) dataclass.
        yaml: file with a mapping of the keys to change.
        overrides: strings such as 'optimizer.lr=1e-3'.

    Raises:
        ConfigError: a file that can't be read, an unknown key, or a value of the wrong type.
    """
    config = OmegaConf.structured(default)
    if yaml is not None:
        config = _merge(config, read_yaml(Path(yaml)), origin=str(yaml))
    for text in overrides:
        if "=" not in text:
            raise ConfigError(f"An override must look like key=value, but is '{text}'.")
        config = _merge(config, OmegaConf.from_dotlist([text]), origin=f"'{text}'")
    result: ConfigT = OmegaConf.to_object(config)  # type: ignore[assignment]  # structured configs return their class
    return result


def from_dict(default: ConfigT, values: Mapping[str, Any], *, origin: str) -> ConfigT:
    """Returns a copy of `default` with `values`, as `to_dict` wrote them; `origin` names their file in errors.

    Raises:
        ConfigError: an unknown key or a value of the wrong type.
    """
    change = OmegaConf.create(dict(values))
    result: ConfigT = OmegaConf.to_object(_merge(OmegaConf.structured(default), change, origin=origin))  # type: ignore[assignment]
    return result


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a dataclass as plain nested containers, as it is saved with every result."""
    return dataclasses.asdict(config)


def first_difference(
    old: Mapping[str, Any], new: Mapping[str, Any], *, prefix: str = ""
) -> tuple[str, Any, Any] | None:
    """Returns (dotted key, old value, new value) of the first setting in which two nested mappings differ."""
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found = first_difference(before, after, prefix=f"{prefix}{key}.")
            if found is not None:
                return found
        elif before != after:
            return f"{prefix}{key}", before, after
    return None


def read_yaml(path: Path) -> DictConfig:
    """Reads a YAML file that holds a mapping; ConfigError where it is missing or something else."""
    if not path.is_file():
        raise ConfigError(f"The config file {path} does not exist: check the path.")
    try:
        loaded = OmegaConf.load(path)
    except Exception as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"The config file {path} is not valid YAML ({reason}{where}): mend it.") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"The config file {path} must hold a mapping of keys to values: mend it.")
    return loaded


def _merge(config: DictConfig, change: DictConfig, *, origin: str) -> DictConfig:
    _check_keys(config, change, prefix="", origin=origin)
    try:
        return OmegaConf.merge(config, change)  # type: ignore[return-value]  # merging two mappings gives a mapping
    except OmegaConfBaseException as error:
        key = error.full_key or "?"
        raise ConfigError(f"The value of '{key}' in {origin} does not fit: {str(error).splitlines()[0]}.") from error


def _check_keys(config: DictConfig, change: DictConfig, *, prefix: str, origin: str) -> None:
    for key in change:
        name = str(key)
        if key not in config:
            # A field of type dict[...] takes any key; a dataclass takes only its own.
            if OmegaConf.get_type(config) is dict:
                continue
            raise ConfigError(f"Unknown key '{prefix}{name}' in {origin}.{suggest(name, [str(k) for k in config])}")
        if OmegaConf.is_dict(change[key]) and OmegaConf.is_dict(config[key]):
            _check_keys(config[key], change[key], prefix=f"{prefix}{name}.", origin=origin)
