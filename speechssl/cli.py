"""The command line: one verb per module of `speechssl.commands`, imported only when it is called.

A verb's module has a function `command` with typer annotations and a docstring with an example. Whatever goes wrong
ends in one sentence and an exit status that is not 0; `--debug` shows the traceback.
"""

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import typer

from speechssl.errors import SpeechsslError
from speechssl.files import disk_full
from speechssl.memory import keep_freed_memory

VERBS = {
    "list": "List upstreams and tasks, or what can be set of a task.",
    "prepare": "Prepare the demo corpus or a published one, or count what is missing of it.",
    "extract": "Extract features of audio files with an upstream.",
    "cluster": "Fit k-means on features and label a corpus with it.",
    "pretrain": "Pre-train an upstream.",
    "vocoder": "Train a vocoder on a corpus.",
    "run": "Train and evaluate a task on top of an upstream.",
    "infer": "Apply a trained task to your own files.",
    "score": "Measure conversions or a detector's scores, whoever made them, or runs under disturbances.",
    "analyse": "Look inside models: what their layers know, on one page.",
    "report": "Write one HTML page about finished runs.",
    "export": "Write a pre-trained checkpoint as an upstream folder.",
    "cache": "Show or trim the feature cache.",
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"speechssl.commands.{cmd_name}")
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name=cmd_name, cls=getattr(module, "Parser", None))(module.command)
        command: Any = typer.main.get_command(app)  # newer typer has a click of its own, alike in all but identity
        return command  # type: ignore[no-any-return]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            from speechssl.errors import UnknownNameError

            raise UnknownNameError("command", args[0], VERBS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=_Verbs, help="Pre-train, load and measure self-supervised speech models.")
@click.version_option(package_name="speechssl")
@click.option("--debug", is_flag=True, help="Show tracebacks and debug messages.")
def app(debug: bool) -> None:
    """What stands before the verb."""
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, format="%(levelname)s %(message)s")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script `speechssl`."""
    keep_freed_memory()
    args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    debug = "--debug" in args
    if debug:
        # Accepted anywhere on the line, since one adds it to a command that has just failed.
        args = ["--debug", *(a for a in args if a != "--debug")]
    try:
        result: Any = app.main(args=args, prog_name="speechssl", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort, typer.Abort):
        _stop("Interrupted; what was finished is kept, and the same command goes on from there.", 130)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except BrokenPipeError:
        # The reader, such as `head`, has left; nothing more may be written, not even by the interpreter at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error, of click or of the copy of it inside typer
            _stop(_usage(error, args), 2)
        if debug:
            raise
        _stop(_sentence(error), 1)
    else:
        sys.exit(result if isinstance(result, int) else 0)


def _usage(error: Any, args: Sequence[str]) -> str:
    verb = next((a for a in args if a in VERBS), None)
    message = str(error.format_message()).rstrip().removesuffix(".").replace("Value error, ", "")  # a validator's words
    return f"{message}: see `speechssl {verb + ' ' if verb else ''}--help`."


def _sentence(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, SpeechsslError):
        return text
    full = disk_full(error)
    if full is not None:
        where = f" while writing {full.filename}" if full.filename else ""
        return f"The disk is full{where}: free some space and run the same command again; what was finished is kept."
    if isinstance(error, OSError) and error.filename and error.strerror:
        return _about_a_path(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"Out of memory ({text or type(error).__name__}): ask for fewer seconds of audio per batch."
    return f"{type(error).__name__}: {text.removesuffix('.')}. Run again with --debug for the traceback."


def _about_a_path(error: OSError) -> str:
    path = Path(os.fsdecode(error.filename))
    if isinstance(error, FileExistsError | NotADirectoryError):
        file = next((p for p in (path, *path.parents) if p.exists() and not p.is_dir()), path)
        return f"{file} is a file, but must be a folder: choose another path."
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder, but must be a file: choose another path."
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist: check the path."
    return f"{path}: {error.strerror}; check the path and its permissions."


def _stop(sentence: str, status: int) -> NoReturn:
    print(f"speechssl: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(status)
