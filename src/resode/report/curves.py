"""Curves: a quantity over the epochs as the geometry of a plot; the page draws it as SVG.

Coordinates are pixels of a WIDTH x HEIGHT view box. An axis is linear from 0, or logarithmic where the values
span more than `STRETCH` times; what is not positive then lies on the axis. Infinity and NaN leave a gap.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from resode.quantities import number, percent
from resode.report.run import Epoch, Run

WIDTH, HEIGHT = 600, 330
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 28, 34
STRETCH = 4.0
LARGEST = 1e100  # what a plot can hold; what is larger counts as infinite
READINGS = 200  # columns at most that answer to the pointer

Value = float | None


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in pixels."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """One curve: `path` in SVG's notation, `dots` where a point stands alone, its last value as text."""

    label: str
    kind: str
    path: str
    dots: tuple[tuple[float, float], ...]
    last: str


@dataclass(frozen=True)
class Reading:
    """What a column of the plot says under the pointer: its middle, its extent, its text."""

    at: float
    left: float
    width: float
    text: str


@dataclass(frozen=True)
class Plot:
    """A plot, ready to draw."""

    title: str
    scale: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    readings: tuple[Reading, ...]

    @property
    def description(self) -> str:
        """The plot in words, for those who cannot see it."""
        return f"{self.title} by epoch; last values: " + ", ".join(f"{x.label} {x.last}" for x in self.lines)


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


@dataclass(frozen=True)
class Series:
    """A named sequence of (epoch, value); `kind` is its colour on the page."""

    label: str
    kind: str
    points: tuple[tuple[int, Value], ...]

    @property
    def finite(self) -> list[float]:
        """The values that can be drawn."""
        return [v for _, v in self.points if _drawable(v)]


def of(run: Run) -> tuple[Plot, ...]:
    """Error, loss and learning rate of a run; what was never measured has no plot."""
    epochs, end = run.epochs, max(run.epoch, run.result.epochs or 0)

    def series(label: str, kind: str, value: Callable[[Epoch], Value]) -> Series:
        return Series(label, kind, tuple((e.epoch, value(e)) for e in epochs if value(e) is not None))

    error = [
        series("train", "train", lambda e: e.train_error),
        series("validation", "validation", lambda e: e.validation_error),
    ]
    if run.result.test is not None and epochs:
        error.append(Series("test", "test", ((run.epoch, run.result.test.top1_error),)))
    loss = [
        series("train", "train", lambda e: e.train_loss),
        series("validation", "validation", lambda e: e.validation_loss),
    ]
    rate = [series("learning rate", "rate", lambda e: e.learning_rate)]
    plots = (
        plot("Error", error, end, write=percent, stretch=STRETCH),
        plot("Loss", loss, end, write=number, stretch=STRETCH),
        plot("Learning rate", rate, end, write=number, stretch=STRETCH if _in_steps(rate[0]) else math.inf),
    )
    return tuple(p for p in plots if p is not None)


def plot(
    title: str, series: Sequence[Series], end: int, *, write: Callable[[Value], str], stretch: float
) -> Plot | None:
    """Lay out one plot over the epochs up to `end`; None where no series has a number.

    Args:
        title: what is drawn.
        series: the curves.
        end: the last epoch of the horizontal axis (later than the last point in an unfinished run).
        write: value -> text, for the labels.
        stretch: the ratio of largest to smallest value from which the vertical axis is logarithmic.
    """
    series = [s for s in series if s.finite]
    if not series:
        return None
    first = min(e for s in series for e, _ in s.points)
    x = Axis(min(first, 1), max(end, first + 1, 2), LEFT, WIDTH - RIGHT)
    y, levels = _vertical([v for s in series for v in s.finite], stretch)
    return Plot(
        title=title,
        scale="logarithmic" if y.logarithmic else "linear",
        lines=tuple(_line(s, x, y, write) for s in series),
        x_ticks=tuple(Tick(x(e), f"{e:,}") for e in _epoch_ticks(int(x.low), int(x.high))),
        y_ticks=tuple(Tick(y(v), number(v)) for v in levels),
        readings=_readings(series, x, write),
    )


# ---------------------------------------------------------------- axes


def _vertical(values: Sequence[float], stretch: float) -> tuple[Axis, list[float]]:
    """The vertical axis for these values, and the levels at which it is labelled."""
    positive = [v for v in values if v > 1 / LARGEST]
    if min(values) >= 0 and positive and max(positive) > stretch * min(positive):
        high = max(positive)
        ladder = _ladder(max(min(positive), high / 1e4), high)
        decades = math.log10(ladder[-1] / ladder[0])
        digits = {1, 2, 5} if decades < 2.1 else {1}
        levels = [v for v in ladder if round(v / 10 ** math.floor(math.log10(v) + 1e-9)) in digits]
        return Axis(ladder[0], ladder[-1], HEIGHT - BOTTOM, TOP, logarithmic=True), levels
    low, high = min(0.0, *values), max(0.0, *values)
    step = _step((high - low if high - low > 1 / LARGEST else 1.0) / 5)
    lowest, highest = math.floor(low / step + 1e-9), max(math.ceil(high / step - 1e-9), 1)
    levels = [step * k for k in range(lowest, highest + 1)]
    return Axis(levels[0], levels[-1], HEIGHT - BOTTOM, TOP), levels


def _ladder(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, ... from the rung at or below `low` to the one at or above `high`."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    rungs = [float(f"{digit}e{exponent}") for exponent in exponents for digit in (1, 2, 5)]
    start = max(k for k, rung in enumerate(rungs) if rung <= low * (1 + 1e-9))
    stop = min(k for k, rung in enumerate(rungs) if rung >= high * (1 - 1e-9))
    return rungs[start : max(stop, start + 1) + 1]


def _step(least: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is at least `least`."""
    return next(rung for rung in _ladder(least, least) if rung >= least * (1 - 1e-9))


def _epoch_ticks(first: int, last: int) -> list[int]:
    """Round epochs between `first` and `last`, six or so; the first one too where there is room."""
    step = max(1, round(_step((last - first) / 7)))
    ticks = list(range(-(-first // step) * step, last + 1, step))
    return ticks if not ticks or ticks[0] - first < step / 2 else [first, *ticks]


def _drawable(value: Value) -> TypeGuard[float]:
    return value is not None and abs(value) <= LARGEST


def _in_steps(series: Series) -> bool:
    """Whether the values are a few levels, as a schedule of milestones has."""
    return len(set(series.finite)) * 4 <= len(series.finite)


# ---------------------------------------------------------------- curves


def _line(series: Series, x: Axis, y: Axis, write: Callable[[Value], str]) -> Line:
    pieces: list[list[tuple[float, float]]] = [[]]
    for epoch, value in series.points:
        if _drawable(value):
            pieces[-1].append((x(epoch), y(value)))
        else:
            pieces.append([])
    return Line(
        label=series.label,
        kind=series.kind,
        path="".join(_path(piece) for piece in pieces if len(piece) > 1),
        dots=tuple(piece[0] for piece in pieces if len(piece) == 1),
        last=write(series.points[-1][1]),
    )


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{px:g} {py:g}" for px, py in points)


def _readings(series: Sequence[Series], x: Axis, write: Callable[[Value], str]) -> tuple[Reading, ...]:
    """A column for each epoch, or for every k-th where there are many."""
    values = [dict(s.points) for s in series]
    epochs = sorted({epoch for known in values for epoch in known})
    epochs = epochs[:: -(-len(epochs) // READINGS)]
    middles = [x(epoch) for epoch in epochs]
    edges = [x.start, *((a + b) / 2 for a, b in itertools.pairwise(middles)), x.end]
    readings = []
    for k, epoch in enumerate(epochs):
        known = [f"{s.label} {write(v[epoch])}" for s, v in zip(series, values, strict=True) if epoch in v]
        width = round(edges[k + 1] - edges[k], 1)
        readings.append(
            Reading(middles[k], round(edges[k], 1), width, f"epoch {epoch:,}: {', '.join(known)}")
        )
    return tuple(readings)
