"""Interruption: what a command shows while it works, and how Ctrl-C or SIGTERM ends it.

A training that has begun handles both signals itself (it saves).
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Interrupted(BaseException):
    """A signal has arrived; typer would catch `KeyboardInterrupt`.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def raising_interrupted() -> Iterator[None]:
    """Context manager: SIGINT and SIGTERM raise `Interrupted`, so that a command cleans up after itself."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to that one
        yield
        return
    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Bars:
    """Shows what `resode.progress` reports, as `console.waiting` does, one piece of work at a time."""

    def __init__(self) -> None:
        self.what: str | None = None
        self.show: Callable[[float], None] = lambda share: None
        self.shown = contextlib.ExitStack()

    def __call__(self, what: str, share: float) -> None:
        """Show that a share of some work is done; at 1 it is no longer shown."""
        if what != self.what and share < 1:
            self.close()
            self._open(what)
        if what == self.what:
            self.show(share)
        if share >= 1:
            self.close()

    def _open(self, what: str) -> None:
        from rich.errors import LiveError

        from resode.cli.console import waiting

        self.what = what
        try:
            self.show = self.shown.enter_context(waiting(what))
        except LiveError:  # the command shows a bar of its own
            self.show = lambda share: None

    def close(self) -> None:
        """Remove the bar."""
        self.what = None
        self.shown.close()
