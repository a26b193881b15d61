"""Errors by exit code; the command line prints each message as one line, without a traceback.

0 success; 2 usage or input; 3 integrity or security; 4 divergence; 5 resources; 128 + n stopped by signal n.
"""

import difflib
from collections.abc import Iterable
from itertools import takewhile


class ResodeError(Exception):
    """Base class of errors with a known cause.

    Args:
        messages: one line each, which names the thing and the fix.
    """

    exit_code = 1

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [f"{type(self).__name__}: {line}" for line in self.messages]


class InputError(ResodeError, ValueError):
    """Wrong usage or input: misspelt names, missing files, wrong shapes (exit code 2)."""

    exit_code = 2


class IntegrityError(ResodeError):
    """A hash mismatch, or a corrupt or hostile file (exit code 3)."""

    exit_code = 3


class DivergenceError(ResodeError):
    """NaN or infinity in training (exit code 4)."""

    exit_code = 4


class ResourceError(ResodeError):
    """Disk, memory or device do not suffice (exit code 5)."""

    exit_code = 5


class Stopped(ResodeError):
    """A signal stopped the run, after everything was saved (exit code 128 + its number)."""

    def __init__(self, signal: int, *messages: str) -> None:
        super().__init__(*messages)
        self.exit_code = 128 + signal


def nearest(word: str, words: Iterable[str]) -> str:
    """The hint `"; did you mean 'x'?"` for the nearest of `words`; an empty string if none is near.

    Ties go to the word that shares the longest beginning.
    """
    known = list(words)
    near = difflib.get_close_matches(word, known, n=len(known) or 1, cutoff=0.5)
    if not near:
        return ""

    def likeness(other: str) -> tuple[float, int]:
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(word, other, strict=False))
        return difflib.SequenceMatcher(None, other, word).ratio(), len(list(alike))

    return f"; did you mean '{max(near, key=likeness)}'?"
