"""Errors that a user can mend: each message is one sentence that names the culprit and the remedy.

The command line prints the message and exits with status 1; only `--debug` shows a traceback.
Library code raises these for a caller's mistake and never uses `assert` for that.
"""

import difflib
from collections.abc import Iterable


class SpeechsslError(Exception):
    """A mistake or a condition that the user can mend; the message names it and the remedy."""


class AudioError(SpeechsslError):
    """An audio file that is missing, unreadable, empty, not finite, or too short."""


class ConfigError(SpeechsslError):
    """An unknown key or a value that does not fit in a configuration."""


class ManifestError(SpeechsslError):
    """A corpus or manifest that is missing, malformed, or points to files that are not there."""


class DivergedError(SpeechsslError):
    """A loss, gradient or metric that is not finite any more."""


class UnknownNameError(SpeechsslError):
    """An upstream, task, corpus or preset that nobody registered; names near matches."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self._given = kind, name, tuple(known)
        super().__init__(f"Unknown {kind} '{name}'.{suggest(name, self._given[2])}")

    def __reduce__(self) -> tuple[type, tuple[str, str, tuple[str, ...]]]:
        # An exception is pickled with its message alone, which would not make it again in the parent of a worker.
        return type(self), self._given


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns ' Did you mean …?' with the nearest of `known`, or the list of all of them."""
    names = sorted(known)
    if near := nearest(name, names):
        return near
    return " Known: " + ", ".join(names) + "." if names else " None is installed."


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ' Did you mean …?' with the nearest of `known`, or nothing where none is near."""
    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    return " Did you mean " + " or ".join(f"'{n}'" for n in near) + "?" if near else ""
