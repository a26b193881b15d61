"""Signals: Ctrl-C, SIGTERM or SIGHUP stops a run after the current step; a second one stops it at once.

SIGHUP is what a terminal sends that is closed; where it was ignored at the start (nohup) it stays ignored.
Signals within one second count as one: torchrun and cluster schedulers forward a signal that every process
has already received.
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
    """The number of the signal that asked to stop, or None."""

    number: int | None = None


@contextlib.contextmanager
def listening() -> Iterator[StopRequest]:
    """Context manager: SIGINT, SIGTERM and SIGHUP are recorded in the `StopRequest`; the process goes on.

    Python delivers signals to the main thread only; in any other thread the request stays empty.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
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
