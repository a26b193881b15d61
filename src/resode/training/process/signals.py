"""Signals: Ctrl-C, SIGTERM or SIGHUP stops a run after the current step; a second one stops it at once.

SIGHUP is what a terminal sends that is closed; where it was ignored at the start (nohup) it stays ignored.
Where nothing is lost (before a run, and in its first step, which may compile for minutes) a signal ends the
block at once instead: `raising_interrupted`.

Signals within one second count as one: torchrun and cluster schedulers forward a signal that every process
has already received.
"""

import contextlib
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

REPEAT = 0.5  # seconds until `Interrupted` is raised again


class Interrupted(BaseException):
    """A signal has arrived; no `KeyboardInterrupt`, which typer would catch.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class StopRequest:
    """The number of the signal that asked to stop, or None."""

    number: int | None = None

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Context manager: a signal is not only recorded, but raises `Interrupted` from whatever runs."""
        with raising_interrupted() as arrived:
            try:
                yield
            finally:
                self.number = self.number or arrived.number


def _numbers() -> list[signal.Signals]:
    """The signals that ask to stop."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


@contextlib.contextmanager
def raising_interrupted() -> Iterator[StopRequest]:
    """Context manager: SIGINT, SIGTERM and SIGHUP raise `Interrupted`, and again until the block ends.

    Python ignores an exception that is raised in a destructor or in the callback of a weak reference, which
    would lose the signal. What is interrupted may warn of it, as PyTorch's backward pass does; such warnings
    are not shown. Signals reach the main thread only; in any other the request stays empty.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    hook, show = sys.unraisablehook, warnings.showwarning

    def show_before(*arguments: Any, **options: Any) -> None:
        if request.number is None:
            show(*arguments, **options)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if request.number is None:
            request.number = number
            previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, interrupt)
            sys.unraisablehook = lambda lost: None if isinstance(lost.exc_value, Interrupted) else hook(lost)
        signal.setitimer(signal.ITIMER_REAL, REPEAT)
        raise Interrupted(request.number)

    previous: dict[int, Any] = {number: signal.signal(number, interrupt) for number in _numbers()}
    warnings.showwarning = show_before
    try:
        yield request
    finally:
        if warnings.showwarning is show_before:
            warnings.showwarning = show
        if request.number is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.unraisablehook = hook
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def listening() -> Iterator[StopRequest]:
    """Context manager: SIGINT, SIGTERM and SIGHUP are recorded in the `StopRequest`; the process goes on.

    Python delivers signals to the main thread only; in any other thread the request stays empty.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous: dict[int, Any] = {number: signal.getsignal(number) for number in _numbers()}
    first = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if request.number is None:
            request.number, first = number, time.monotonic()
        elif time.monotonic() - first > 1:
            signal.signal(number, previous[number])
            signal.raise_signal(number)

    for number in previous:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
