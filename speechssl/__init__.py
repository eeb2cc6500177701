"""Self-supervised speech models: pre-train, load, extract features, measure on tasks.

Nothing heavy is imported until a name is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechssl.conversion import load_converter
    from speechssl.extraction import extract
    from speechssl.loading import load_upstream
    from speechssl.registry import list_tasks, list_upstreams
    from speechssl.runner import run
    from speechssl.types import UpstreamOutput, Utterance
    from speechssl.upstream import Upstream

__version__ = "0.1.0"
__all__ = [
    "Upstream",
    "UpstreamOutput",
    "Utterance",
    "extract",
    "list_tasks",
    "list_upstreams",
    "load_converter",
    "load_upstream",
    "run",
]

_HOME = {
    "Upstream": "upstream",
    "UpstreamOutput": "types",
    "Utterance": "types",
    "extract": "extraction",
    "list_tasks": "registry",
    "list_upstreams": "registry",
    "load_converter": "conversion",
    "load_upstream": "loading",
    "run": "runner",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'speechssl' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"speechssl.{_HOME[name]}"), name)
    globals()[name] = value
    return value
