"""Axes: from numbers to pixels of a WIDTH x HEIGHT view box, with round labels.

An axis is linear or logarithmic; labels are 1, 2 and 5 times powers of ten.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from resode.quantities import number

WIDTH, HEIGHT = 600, 330
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 28, 34
STRETCH = 4.0  # largest to smallest value from which an axis may be logarithmic
LARGEST = 1e100  # what a plot can hold; what is larger counts as infinite


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in pixels."""

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high` (of numbers) onto `start` to `end` (of pixels)."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value, rounded to a tenth; outside of the scale it stays on its end."""
        value = min(max(value, self.low), self.high)
        a, b, x = (
            map(math.log, (self.low, self.high, value)) if self.logarithmic else (self.low, self.high, value)
        )
        return round(self.start + (self.end - self.start) * (x - a) / (b - a), 1)


def from_zero(values: Sequence[float], start: float, end: float, stretch: float) -> tuple[Axis, list[float]]:
    """An axis that holds 0 or, where positive values span more than `stretch` times, a logarithmic one.

    Returns:
        The axis, and the levels at which it is labelled.
    """
    positive = [v for v in values if v > 1 / LARGEST]
    if min(values) >= 0 and positive and max(positive) > stretch * min(positive):
        return logarithmic(positive, start, end)
    return linear([0.0, *values], start, end)


def around(values: Sequence[float], start: float, end: float, stretch: float) -> tuple[Axis, list[float]]:
    """An axis close around the values; logarithmic as in `from_zero`."""
    if min(values) > 1 / LARGEST and max(values) > stretch * min(values):
        return logarithmic(values, start, end)
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return linear([low - margin if low - margin >= 0 or low < 0 else 0.0, high + margin], start, end)


def linear(values: Sequence[float], start: float, end: float) -> tuple[Axis, list[float]]:
    """From a round number at or below all values to one at or above."""
    low, high = min(values), max(values)
    step = round_step((high - low if high - low > 1 / LARGEST else 1.0) / 5)
    lowest = math.floor(low / step + 1e-9)
    highest = max(math.ceil(high / step - 1e-9), lowest + 1)
    levels = [step * k for k in range(lowest, highest + 1)]
    return Axis(levels[0], levels[-1], start, end), levels


def logarithmic(values: Sequence[float], start: float, end: float) -> tuple[Axis, list[float]]:
    """From a rung at or below all (positive) values, four decades at most, to one at or above."""
    high = max(values)
    ladder = _ladder(max(min(values), high / 1e4), high)
    decades = math.log10(ladder[-1] / ladder[0])
    digits = {1, 2, 5} if decades < 2.1 else {1}
    levels = [v for v in ladder if round(v / 10 ** math.floor(math.log10(v) + 1e-9)) in digits]
    return Axis(ladder[0], ladder[-1], start, end, logarithmic=True), levels


def ticks(axis: Axis, levels: Sequence[float], write: Callable[[float], str] = number) -> tuple[Tick, ...]:
    """The labels of these levels."""
    return tuple(Tick(axis(level), write(level)) for level in levels)


def round_step(least: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is at least `least`."""
    return next(rung for rung in _ladder(least, least) if rung >= least * (1 - 1e-9))


def _ladder(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, ... from the rung at or below `low` to the one at or above `high`."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    rungs = [float(f"{digit}e{exponent}") for exponent in exponents for digit in (1, 2, 5)]
    start = max(k for k, rung in enumerate(rungs) if rung <= low * (1 + 1e-9))
    stop = min(k for k, rung in enumerate(rungs) if rung >= high * (1 - 1e-9))
    return rungs[start : max(stop, start + 1) + 1]
