"""Interruption: how Ctrl-C or SIGTERM ends a command.

A training that has begun handles both signals itself (it saves).
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
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
