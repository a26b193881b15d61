"""Signals: Ctrl-C and SIGTERM ask a run to stop after the step in hand; a later one stops it at once.

Within a second they are one request: torchrun and clusters pass on what has reached every process already.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any


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
    previous: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}
    first = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if request.number is None:
            request.number, first = number, time.monotonic()
        elif time.monotonic() - first > 1:
            signal.signal(number, previous[number])
            signal.raise_signal(number)

    for number in numbers:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number in numbers:
            signal.signal(number, previous[number])
