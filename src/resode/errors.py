"""What can go wrong, by exit code: the command line prints one line a message, never a traceback.

0 done; 2 usage or input; 3 integrity or security; 4 diverged; 5 resources; 128 + n stopped by signal n.
"""

import difflib
from collections.abc import Iterable
from itertools import takewhile


class ResodeError(Exception):
    """A mistake with a known cause; each message is one line that names the thing and the mend."""

    exit_code = 1

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages


class InputError(ResodeError, ValueError):
    """Usage or input: misspelt names, missing files, wrong shapes (exit 2)."""

    exit_code = 2


class IntegrityError(ResodeError):
    """A hash mismatch, a corrupt or a hostile file (exit 3)."""

    exit_code = 3


class DivergenceError(ResodeError):
    """Training met NaN or infinity (exit 4)."""

    exit_code = 4


class ResourceError(ResodeError):
    """Disk, memory or device: what is there does not suffice (exit 5)."""

    exit_code = 5


class Stopped(ResodeError):
    """A signal stopped the run after everything was saved (exit 128 + its number)."""

    def __init__(self, signal: int, *messages: str) -> None:
        super().__init__(*messages)
        self.exit_code = 128 + signal


def nearest(word: str, words: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest of `words`, or an empty string where none is near.

    Of equally near ones it is the one with the longest beginning in common.
    """
    known = list(words)
    near = difflib.get_close_matches(word, known, n=len(known) or 1, cutoff=0.5)
    if not near:
        return ""

    def likeness(other: str) -> tuple[float, int]:
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(word, other, strict=False))
        return difflib.SequenceMatcher(None, other, word).ratio(), len(list(alike))

    return f"; did you mean '{max(near, key=likeness)}'?"
