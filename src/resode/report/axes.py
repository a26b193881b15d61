"""Axes: linear and logarithmic scales from numbers to pixels, labelled at 1, 2 and 5 times powers of ten."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

STRETCH = 4.0  # ratio of the largest to the smallest value above which an axis is logarithmic
LARGEST = 1e100  # the largest value that is drawn; larger ones count as infinite
ROUNDING = 1e-9  # values closer than this part of their size count as equal


@dataclass(frozen=True)
class Axis:
    """A scale from [`low`, `high`] to the pixels [`start`, `end`], labelled at `levels`."""

    low: float
    high: float
    start: float
    end: float
    levels: tuple[float, ...] = ()
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value, to a tenth; values outside the scale are clipped to its ends."""
        scale = math.log if self.logarithmic else float
        a, b, x = map(scale, (self.low, self.high, min(max(value, self.low), self.high)))
        return round(self.start + (self.end - self.start) * (x - a) / (b - a), 1)


def axis(values: Sequence[float], start: float, end: float, *, zero: bool, stretch: float = STRETCH) -> Axis:
    """An axis over `values`, logarithmic where the positive ones span more than `stretch` times.

    Args:
        values: at least one, finite.
        start: the pixel of the lowest level.
        end: the pixel of the highest level.
        zero: a linear axis includes 0 (on a logarithmic one, 0 is clipped); otherwise it is close around
            the values.
        stretch: ratio of the largest to the smallest value above which the axis is logarithmic.
    """
    low, high = min(values), max(values)
    positive = [value for value in values if value > 1 / LARGEST]
    if low >= 0 and positive and high > stretch * min(positive) and (zero or low > 1 / LARGEST):
        return logarithmic(max(min(positive), high / 1e4), high, start, end)
    if zero:
        return _linear(min(low, 0.0), max(high, 0.0), start, end)
    equal = high - low <= ROUNDING * max(abs(low), abs(high))
    margin = (0.05 * abs(high) or 0.5) if equal else 0.06 * (high - low)
    return _linear(max(low - margin, 0.0) if low >= 0 else low - margin, high + margin, start, end)


def _linear(low: float, high: float, start: float, end: float) -> Axis:
    step = rung_above((high - low if high - low > 1 / LARGEST else 1.0) / 5)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    levels = tuple(step * k for k in range(first, last + 1))
    return Axis(levels[0], levels[-1], start, end, levels)


def logarithmic(low: float, high: float, start: float, end: float) -> Axis:
    """A logarithmic axis from a positive `low` to `high`, labelled at 1, 2 and 5 times powers of ten."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    rungs = [float(f"{digit}e{exponent}") for exponent in exponents for digit in (1, 2, 5)]
    first = max(rung for rung in rungs if rung <= low * (1 + 1e-9))
    last = min(rung for rung in rungs if rung >= high * (1 - 1e-9))
    few = last < 120 * first  # two decades: label 1, 2, 5; more: powers of ten alone
    levels = tuple(rung for rung in rungs if first <= rung <= last and (few or f"{rung:e}"[0] == "1"))
    return Axis(first, last, start, end, levels, logarithmic=True)


def rung_above(value: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least `value` (> 0)."""
    exponent = math.floor(math.log10(value))
    rungs = (float(f"{digit}e{exponent}") for digit in (1, 2, 5, 10))
    return next(rung for rung in rungs if rung >= value * (1 - 1e-9))
