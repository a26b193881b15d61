"""Curves: a quantity over the epochs as the geometry of a plot; the page draws it as SVG.

Coordinates are pixels of a WIDTH x HEIGHT view box. An axis is linear from 0, or logarithmic where the values
span more than `STRETCH` times; what is not positive then lies on the axis. Infinity and NaN leave a gap.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeGuard

from resode.quantities import number, percent
from resode.report.axes import (
    BOTTOM,
    HEIGHT,
    LARGEST,
    LEFT,
    RIGHT,
    STRETCH,
    TOP,
    WIDTH,
    Axis,
    Tick,
    from_zero,
    round_step,
    ticks,
)
from resode.report.comparison import Group
from resode.training.records.reader import EpochRow, RunRecord

READINGS = 200  # columns at most that answer to the pointer
TOGETHER = 4  # curves up to which a reading fits its line

Value = float | None


@dataclass(frozen=True)
class Line:
    """One curve: `path` in SVG's notation, `dots` where a point stands alone, its last value as text.

    `band` is the area between the least and the largest of several runs; empty for one.
    """

    label: str
    kind: str
    path: str
    dots: tuple[tuple[float, float], ...]
    last: str
    band: str = ""


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
class Series:
    """A named sequence of (epoch, value); `kind` is its colour, `range` the extent of several runs."""

    label: str
    kind: str
    points: tuple[tuple[int, Value], ...]
    range: tuple[tuple[int, float, float], ...] = ()

    @property
    def finite(self) -> list[float]:
        """The values that can be drawn."""
        return [v for _, v in self.points if _drawable(v)]


def of(run: RunRecord) -> tuple[Plot, ...]:
    """Error, loss and learning rate of a run; what was never measured has no plot."""
    epochs, end = run.epochs, max(run.epoch, run.result.epochs or 0)

    def series(label: str, kind: str, value: Callable[[EpochRow], Value]) -> Series:
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


def of_groups(groups: Sequence[Group], kinds: Mapping[str, str]) -> tuple[Plot, ...]:
    """Errors and loss of every arm, the mean over its seeds, with the extent of the runs around it."""
    quantities: dict[str, tuple[Callable[[EpochRow], Value], Callable[[Value], str]]] = {
        "Validation error": (lambda e: e.validation_error, percent),
        "Training error": (lambda e: e.train_error, percent),
        "Training loss": (lambda e: e.train_loss, number),
    }
    end = max((run.epoch for group in groups for run in group.runs.values()), default=0)
    plots = (
        plot(title, [_mean(g, kinds[g.name], value) for g in groups], end, write=write, stretch=STRETCH)
        for title, (value, write) in quantities.items()
    )
    return tuple(p for p in plots if p is not None)


def _mean(group: Group, kind: str, value: Callable[[EpochRow], Value]) -> Series:
    """Over the finished seeds, where there are any; the epochs that all of them have."""
    runs = list((group.finished or group.runs).values())
    by_epoch: dict[int, list[float]] = {}
    for run in runs:
        for epoch in run.epochs:
            if (found := value(epoch)) is not None:
                by_epoch.setdefault(epoch.epoch, []).append(found)
    by_epoch = {epoch: values for epoch, values in by_epoch.items() if len(values) == len(runs)}
    points = tuple((epoch, fmean(values)) for epoch, values in sorted(by_epoch.items()))
    extent = (
        (e, min(v), max(v)) for e, v in sorted(by_epoch.items()) if len(v) > 1 and all(map(_drawable, v))
    )
    return Series(group.name, kind, points, tuple(extent))


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
    y, levels = from_zero([v for s in series for v in s.finite], HEIGHT - BOTTOM, TOP, stretch)
    return Plot(
        title=title,
        scale="logarithmic" if y.logarithmic else "linear",
        lines=tuple(_line(s, x, y, write) for s in series),
        x_ticks=tuple(Tick(x(e), f"{e:,}") for e in _epoch_ticks(int(x.low), int(x.high))),
        y_ticks=ticks(y, levels),
        readings=_readings(series, x, write) if len(series) <= TOGETHER else (),
    )


def _epoch_ticks(first: int, last: int) -> list[int]:
    """Round epochs between `first` and `last`, six or so; the first one too where there is room."""
    step = max(1, round(round_step((last - first) / 7)))
    found = list(range(-(-first // step) * step, last + 1, step))
    return found if not found or found[0] - first < step / 2 else [first, *found]


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
        band=_band(series, x, y),
    )


def _band(series: Series, x: Axis, y: Axis) -> str:
    """There along the largest values, back along the least."""
    if len(series.range) < 2:
        return ""
    there = [(x(epoch), y(high)) for epoch, _, high in series.range]
    back = [(x(epoch), y(low)) for epoch, low, _ in reversed(series.range)]
    return _path([*there, *back]) + "Z"


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
