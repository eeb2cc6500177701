"""Runs the command line inside the tests, and reads the one sentence that a failure ends in."""

import pytest

from speechssl.cli import main


def run(*argv: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    return int(stop.value.code or 0)


def the_sentence(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Runs a command that must fail; returns the one line that it says so in."""
    capsys.readouterr()
    assert run(*argv) != 0
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "--debug" not in err  # a failure that nobody has found words for
    lines = [line for line in err.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("speechssl: ")]  # the others tell of progress
    assert said == lines[-1:] and said[0].endswith((".", "?")), err
    return said[0]
