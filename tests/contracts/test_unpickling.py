"""What is pickled in checkpoints never runs, and what is no checkpoint is refused in one sentence."""

import argparse
import builtins
import importlib
import os
import sys
import types
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from test_file_formats import newer, settings

from speechssl.errors import SpeechsslError
from speechssl.fairseq_format import parse_conv_layers
from speechssl.loading import load_upstream
from speechssl.pickled import read_pickled


class Attack:
    """Runs a function when it is unpickled by pickle itself."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.what = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.what


ATTACKS = {
    "os.system": lambda marker: Attack(os.system, f"touch {marker}"),
    "builtins.eval": lambda marker: Attack(builtins.eval, f"open({str(marker)!r}, 'w')"),
    "builtins.getattr": lambda marker: Attack(getattr, Path, "home"),
    "builtins.open": lambda marker: Attack(open, str(marker), "w"),
    "importlib.import_module": lambda marker: Attack(importlib.import_module, "antigravity"),
    "nested": lambda marker: {"deep": [(Attack(dict, [(1, Attack(os.mkdir, str(marker)))]),)]},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("name", ATTACKS)
def test_checkpoints_that_would_run_code_are_refused_by_name(name: str, zipped: bool, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.pt"
    content = {"model": {"w": torch.zeros(2)}, "cfg": ATTACKS[name](marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    names = {"os.system": r"\.system", "nested": r"\.mkdir", "builtins.open": r"io\.open"}.get(name, name)
    with pytest.raises(SpeechsslError, match=names):
        load_upstream(path)
    assert not marker.exists()


def test_objects_of_unknown_packages_become_plain_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("fairseq")
    module = types.ModuleType("fairseq.settings")

    class Choice:
        def __init__(self, value: str) -> None:
            self.value = value

        def __reduce__(self) -> tuple[type, tuple[str]]:
            return Choice, (self.value,)

    class Settings:
        def __init__(self) -> None:
            self.mode, self.sizes = Choice("layer_norm"), [1, 2]

    for cls in (Choice, Settings):
        cls.__module__, cls.__qualname__ = "fairseq.settings", cls.__name__
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "fairseq", package)
    monkeypatch.setitem(sys.modules, "fairseq.settings", module)
    content = {
        "settings": Settings(), "choice": Choice("a"), "path": Path("a/b"),
        "none": defaultdict(list), "space": argparse.Namespace(x=1),
        "conf": OmegaConf.create({"a": [1, {"b": None}], "c": "text"}), "w": torch.arange(3),
    }  # fmt: skip
    torch.save(content, tmp_path / "x.pt")
    monkeypatch.undo()
    found = read_pickled(tmp_path / "x.pt")
    assert torch.equal(found.pop("w"), torch.arange(3))
    assert found == {
        "settings": {"mode": "layer_norm", "sizes": [1, 2]}, "choice": "a", "path": "a/b", "none": {},
        "space": {"x": 1},
        "conf": {"a": [1, {"b": None}], "c": "text"},
    }  # fmt: skip


def _truncated(path: Path) -> None:
    torch.save({"model": {"w": torch.zeros(500)}}, path)
    path.write_bytes(path.read_bytes()[:1500])


def _old_truncated(path: Path) -> None:
    torch.save({"model": {"w": torch.zeros(500)}}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:900])


def _torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_truncated, "cut off"),
        (_old_truncated, "torch"),
        (_torchscript, "TorchScript"),
        (lambda p: p.write_text("no checkpoint"), "cut off"),
        (lambda p: p.write_bytes(b""), "cut off"),
        (lambda p: torch.save([1], p), "no mapping"),
        (lambda p: torch.save({"model": {"w": 1}}, p), "no weights"),
        (lambda p: torch.save({"encoder.weight": torch.zeros(2)}, p), "weights alone .*name the folder"),
        (lambda p: torch.save({"model": {}}, p), "neither 'cfg' nor 'args'"),
        (lambda p: torch.save({"model": {}, "cfg": {"model": {"_name": "transformer_lm"}}}, p), "transformer_lm"),
        (lambda p: torch.save(newer(settings("group"), {}, False), p), "lack"),
        (lambda p: torch.save(newer({**settings("group"), "activation_fn": "relu"}, {}, False), p), "activation_fn"),
    ],
)
def test_what_is_no_such_checkpoint_is_one_sentence(damage: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.pt"
    damage(path)
    with pytest.raises(SpeechsslError, match=says) as error:
        load_upstream(path)
    assert "bad.pt" in str(error.value)


def test_layers_of_convolutions_are_read_without_running_the_text() -> None:
    assert parse_conv_layers("[(512,10,5)] + [(512,3,2)] * 2", origin="x") == [(512, 10, 5)] + [(512, 3, 2)] * 2
    for text in ("__import__('os').system('true')", "[(1,2)]", "[1]", "[(1,2,3)] * 999999999", "(", "[(1,2,'a')]"):
        with pytest.raises(SpeechsslError, match="conv_feature_layers"):
            parse_conv_layers(text, origin="x")
