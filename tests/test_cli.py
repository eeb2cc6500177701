"""The command line: help with an example for every verb, one sentence for every mistake, tracebacks only on request."""

import copy
import errno
import importlib
import subprocess
import sys
from pathlib import Path

import click
import pytest

from speechssl import cli
from speechssl.errors import AudioError, SpeechsslError, UnknownNameError
from speechssl.runner import resolve_config


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    return int(stop.value.code or 0)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--help") == 0
    assert f"Example: speechssl {verb}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_help_lists_all_verbs(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*argv) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in cli.VERBS)


def test_list_names_upstreams_and_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    out = capsys.readouterr().out
    assert "fbank" in out and "hubert_tiny" in out


def test_list_shows_the_settings_of_a_preset_as_the_yaml_that_run_takes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("list", "probe_frame") == 0
    out = capsys.readouterr().out
    assert "probe_segment" in out and "linear, mlp\n" in out and "1 to 5" in out
    (tmp_path / "settings.yaml").write_text(out, encoding="utf-8")
    _, config = resolve_config("probe", yaml=tmp_path / "settings.yaml")
    assert config == resolve_config("probe_frame")[1]
    assert run("list", "superb") == 0
    assert "keyword_spotting: speech_commands\n" in capsys.readouterr().out


MISTAKES = {
    "unknown verb": (["extrakt"], "'extract'"),
    "unknown option": (["--verbose"], "--verbose"),
    "unknown option of a verb": (["cache", "--fodler", "x"], "--fodler"),
    "missing argument": (["extract"], "upstream"),
    "missing option": (["extract", "fbank", "a.wav"], "--output"),
    "not a number": (["cache", "--trim", "much"], "--trim"),
    "out of range": (["cache", "--trim", "-1"], "--trim"),
    "not a choice": (["extract", "fbank", "a.wav", "-o", "x", "--format", "csv"], "csv"),
    "layers that are no numbers": (["extract", "fbank", "a.wav", "-o", "x", "--layers", "six"], "six"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistyped_command_is_one_line_that_names_it(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv, names = MISTAKES[case]
    assert run(*argv) in (1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and names in lines[0] and "Error:" not in lines[0]


def raises(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise error

    monkeypatch.setattr(importlib.import_module("speechssl.commands.list"), "command", command)


FAILURES = {
    "our own": (AudioError("a.wav is a folder."), 1, "speechssl: a.wav is a folder."),
    "two lines": (RuntimeError("first\nsecond"), 1, "first second. Run again with --debug"),
    "full disk": (OSError(errno.ENOSPC, "No space left", "a.npy"), 1, "disk is full while writing a.npy"),
    "permissions": (PermissionError(errno.EACCES, "Permission denied", "a.wav"), 1, "a.wav: Permission denied"),
    "memory": (MemoryError(), 1, "fewer seconds of audio"),
    "interrupt": (KeyboardInterrupt(), 130, "same command goes on"),
    "abort": (click.Abort(), 130, "same command goes on"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_is_one_line(case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    error, status, says = FAILURES[case]
    raises(error, monkeypatch)
    assert run("list") == status
    lines = capsys.readouterr().err.strip().splitlines()  # click ends the line that holds ^C
    assert len(lines) == 1 and says in lines[0]


@pytest.mark.parametrize("argv", [["--debug", "list"], ["list", "--debug"]])
def test_debug_lets_the_traceback_through(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    raises(AudioError("a.wav is a folder."), monkeypatch)
    with pytest.raises(AudioError):
        cli.main(argv)


def test_the_command_line_starts_without_torch() -> None:
    script = "import sys, speechssl.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("error", [AudioError("a.wav is a folder."), UnknownNameError("upstream", "fbnk", ["fbank"])])
def test_an_error_of_a_worker_process_arrives_as_it_was(error: SpeechsslError) -> None:
    arrived = copy.copy(error)  # the way that pickle takes too
    assert (type(arrived), str(arrived)) == (type(error), str(error))


def test_a_choice_that_is_none_is_told_without_the_validators_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", "fbank", "-o", "out", "--to", "paper") == 2
    err = capsys.readouterr().err
    assert "Value error" not in err and "'paper' is not one of" in err
