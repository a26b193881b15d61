"""Signals: Ctrl-C and SIGTERM ask a run to stop after the step in hand; a second one stops it at once."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """The signal that asked to stop, or None."""

    number: int | None = None


@contextlib.contextmanager
def listening() -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM instead of dying of them; only the main thread can listen."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: FrameType | None) -> None:
        request.number = number
        for each in numbers:
            signal.signal(each, previous[each])

    for number in numbers:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number in numbers:
            signal.signal(number, previous[number])
