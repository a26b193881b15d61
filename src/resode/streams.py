"""Streams: a console on stderr that never fails: a closed terminal or a full disk ends no training."""

import contextlib
import sys
from typing import IO, Any

from rich.console import Console


class Unfailing:
    """A text stream whose writes do nothing where the stream is closed, its pipe broken, or its disk full."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write if it is possible."""
        with contextlib.suppress(OSError, ValueError):
            return self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if it is possible."""
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class ErrorConsole(Console):
    """A console on stderr, whatever becomes of it."""

    def __init__(self) -> None:
        super().__init__(stderr=True)

    @property
    def file(self) -> IO[str]:
        """The stream."""
        return Unfailing(super().file)  # type: ignore[return-value]  # all of a stream that rich uses

    @file.setter
    def file(self, new: IO[str]) -> None:
        self._file = new


def notebook_cell() -> int | None:
    """The number of the cell that IPython, in a notebook or a terminal, is running; None without IPython."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return None if shell is None else int(shell.execution_count)
