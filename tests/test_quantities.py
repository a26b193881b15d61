"""Numbers as they are written."""

import math

import pytest

from resode import quantities


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.31214, "0.3121"),
        (0.1, "0.1"),
        (1e-4, "0.0001"),
        (1e-5, "1e-5"),
        (1.25e-7, "1.25e-7"),
        (428.571, "428.6"),
        (12340.4, "12,340"),
        (-0.5, "-0.5"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert quantities.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (8.34, "8.3 s"),
        (59.97, "1 min 00 s"),
        (1056, "17 min 36 s"),
        (3599.7, "1 h 00 min"),
        (18420, "5 h 07 min"),
        (183600, "2 d 03 h"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert quantities.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(2, "10 s"), (47, "50 s"), (1056, "18 min"), (18420, "5 h 07 min")]
)
def test_durations_to_come_are_rough(seconds: float, text: str) -> None:
    assert quantities.roughly(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "–"),
        (1_480_000, "1.5 MB"),
        (99_900_000, "99.9 MB"),
        (610_900_000, "611 MB"),
        (1_250_000_000, "1.25 GB"),
    ],
)
def test_sizes(size: int | None, text: str) -> None:
    assert quantities.size(size) == text


def test_percentages_and_counts() -> None:
    assert quantities.percent(8.274) == "8.27 %"
    assert quantities.percent(None) == "–"
    assert quantities.count(269722) == "269,722"
