"""Signals: one request, whoever else passes it on; a later one acts as it would have without us."""

import os
import signal

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
