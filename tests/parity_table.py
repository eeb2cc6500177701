"""`pytest tests/families tests/contracts -n 0 --parity docs/parity.md` writes the table of deviations from references.

A test that compares an upstream with an independent implementation is marked `parity(format, against)`; fields in
braces are its parameters, and `family=` names the family where the file does not. Every `torch.testing.assert_close`
in it that allows no relative error counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

HEADING = """\
# How far hidden states are from the reference implementations'

Written by `pytest tests/families tests/contracts -n 0 --parity docs/parity.md`. Each reference is built small, with
random weights, and saved in the format; what is loaded here is compared hidden state by hidden state (float32, on a
CPU; the tests allow 1e-4). A slow reference is one written for the test from the paper and the official code, where no
package has the model. Libraries: {libraries}.

| family | format | checked against | hidden states | largest deviation |
|---|---|---|---|---|"""


@dataclass
class Deviation:
    """Of all comparisons of one family in one format with one reference."""

    states: int = 0
    largest: float = 0.0


class ParityTable:
    """Watches marked tests and writes what they measured."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[tuple[str, str, str], Deviation] = {}
        self.current: tuple[str, str, str] | None = None
        self.real = torch.testing.assert_close

    def assert_close(self, actual: Any, expected: Any, *args: Any, **named: Any) -> None:
        if self.current is not None and named.get("rtol") == 0 and isinstance(actual, Tensor) and actual.numel():
            row = self.rows.setdefault(self.current, Deviation())
            row.states += 1
            row.largest = max(row.largest, float((actual.double() - expected.double()).abs().max()))
        self.real(actual, expected, *args, **named)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        mark = item.get_closest_marker("parity")
        parameters = dict(getattr(getattr(item, "callspec", None), "params", {}))
        named = {key: getattr(value, "__name__", value) for key, value in parameters.items()}
        if mark is not None:
            family = mark.kwargs.get("family", named.get("family", item.path.stem.removeprefix("test_")))
            form, against = (str(text).format(**named).replace("_", " ") for text in mark.args)
            self.current = (str(family).format(**named), form, against)
        torch.testing.assert_close = self.assert_close
        try:
            return (yield)
        finally:
            torch.testing.assert_close = self.real
            self.current = None

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus:
            return
        libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchaudio", "transformers"))
        lines = [HEADING.format(libraries=libraries)]
        lines += [
            f"| `{family}` | {form} | {against} | {row.states} | {row.largest:.1e} |"
            for (family, form, against), row in sorted(self.rows.items())
        ]
        self.path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity", metavar="FILE", help="write the deviations from reference implementations as a table")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "parity(format, against): compares hidden states with a reference's")
    path = config.getoption("--parity")
    if path and getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("--parity needs one process: add -n 0.")
    if path:
        config.pluginmanager.register(ParityTable(Path(path)))
