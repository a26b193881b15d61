"""Signals: one request, whoever else passes it on; a later one acts as it would have without us."""

import os
import signal
import sys
import time
import warnings
import weakref

import pytest

from resode.training.process import signals


@pytest.fixture
def got():
    """The signals that went to the handlers from before."""
    numbers, seen = (signal.SIGINT, signal.SIGTERM), []
    before = [signal.signal(number, lambda number, frame: seen.append(number)) for number in numbers]
    yield seen
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_signals_within_a_second_are_one_request(got, monkeypatch):
    monkeypatch.setattr(signals.time, "monotonic", lambda: 0.0)
    with signals.listening() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop.number == signal.SIGTERM
    assert got == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert got == [signal.SIGTERM]


def test_a_later_one_acts_at_once(got, monkeypatch):
    now = 0.0
    monkeypatch.setattr(signals.time, "monotonic", lambda: now)
    with signals.listening() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        now = 1.5
        os.kill(os.getpid(), signal.SIGINT)
        assert got == [signal.SIGINT]


def test_a_closed_terminal_stops_unless_it_was_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with signals.listening() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number is None
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with signals.listening() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number == signal.SIGHUP
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


class Referent:
    """Something that a weak reference can have."""


def interrupted_late():
    """Lose a signal in a block that runs on."""
    with signals.raising_interrupted():
        lose_a_signal()
        time.sleep(60)


def lose_a_signal():
    """Send SIGINT where Python ignores exceptions: in the callback of a weak reference."""
    referent = Referent()
    reference = weakref.ref(referent, lambda gone: os.kill(os.getpid(), signal.SIGINT))
    del referent
    assert reference() is None


def test_an_interruption_that_python_ignores_is_raised_again(got, monkeypatch, capsys):
    monkeypatch.setattr(signals, "REPEAT", 0.01)
    before = signal.getsignal(signal.SIGALRM), sys.unraisablehook
    with pytest.raises(signals.Interrupted) as interrupted:
        interrupted_late()
    assert interrupted.value.number == signal.SIGINT
    assert (signal.getsignal(signal.SIGALRM), sys.unraisablehook) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert (got, capsys.readouterr().err) == ([], "")


def interrupted_with_warnings():
    """Warn before and after a signal, where hooks are restored as the block is left."""
    with warnings.catch_warnings():
        warnings.warn("before", stacklevel=1)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        finally:
            warnings.warn("after", stacklevel=1)


def test_what_is_interrupted_may_not_warn_of_it(got, recwarn):
    show = warnings.showwarning
    with pytest.raises(signals.Interrupted), signals.raising_interrupted():
        interrupted_with_warnings()
    assert warnings.showwarning is show
    assert [str(each.message) for each in recwarn] == ["before"]


def test_a_block_that_ends_before_the_repetition_has_recorded_the_signal(got, monkeypatch):
    monkeypatch.setattr(signals, "REPEAT", 60)
    with signals.listening() as stop:
        with stop.raising():
            lose_a_signal()
        assert stop.number == signal.SIGINT
