"""Learning curves: error, loss and learning rate over the epochs, of a run or of the arms of a study.

A vertical axis starts at 0, or is logarithmic where the values span more than STRETCH times. Infinity and NaN
leave a gap.
"""

import itertools
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeGuard

from resode.quantities import number, percent
from resode.report.axes import LARGEST, STRETCH, Axis, axis, rung_above
from resode.report.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, add, canvas, grid, path
from resode.report.comparison import Group
from resode.training.records.reader import EpochRow, RunRecord

READINGS = 200  # columns at most that show their values when pointed at
TOGETHER = 4  # curves up to which the values of an epoch fit a line

Value = float | None
Quantity = Callable[[EpochRow], Value]


@dataclass(frozen=True)
class Series:
    """A curve: (epoch, value) with its label and CSS class; `extent` is (epoch, least, largest) over runs."""

    label: str
    css: str
    points: tuple[tuple[int, Value], ...]
    extent: tuple[tuple[int, float, float], ...] = ()

    @property
    def finite(self) -> list[float]:
        """The values that can be drawn."""
        return [value for _, value in self.points if _drawable(value)]


def of_run(run: RunRecord) -> tuple[Chart, ...]:
    """Error, loss and learning rate of a run; a quantity that was never measured has no chart."""
    end = max(run.epoch, run.result.epochs or 0)

    def series(label: str, css: str, quantity: Quantity) -> Series:
        return Series(label, css, tuple((e.epoch, v) for e in run.epochs if (v := quantity(e)) is not None))

    error = [
        series("train", "train", lambda e: e.train_error),
        series("validation", "validation", lambda e: e.validation_error),
    ]
    if run.result.test is not None and run.epochs:
        error.append(Series("test", "test", ((run.epoch, run.result.test.top1_error),)))
    loss = [
        series("train", "train", lambda e: e.train_loss),
        series("validation", "validation", lambda e: e.validation_loss),
    ]
    rate = series("learning rate", "rate", lambda e: e.learning_rate)
    in_steps = len(set(rate.finite)) * 4 <= len(rate.finite)  # a schedule of milestones
    charts = (
        chart("Error", error, end, percent),
        chart("Loss", loss, end, number),
        chart("Learning rate", [rate], end, number, stretch=STRETCH if in_steps else math.inf),
    )
    return tuple(c for c in charts if c is not None)


def of_groups(groups: Sequence[Group], css: Mapping[str, str]) -> tuple[Chart, ...]:
    """Errors and loss of every arm: the mean over its seeds, and the extent of its runs as a band."""
    quantities: tuple[tuple[str, Quantity, Callable[[Value], str]], ...] = (
        ("Validation error", lambda e: e.validation_error, percent),
        ("Training error", lambda e: e.train_error, percent),
        ("Training loss", lambda e: e.train_loss, number),
    )
    end = max((run.epoch for group in groups for run in group.runs.values()), default=0)
    charts = (
        chart(title, [_mean(group, css[group.name], quantity) for group in groups], end, write)
        for title, quantity, write in quantities
    )
    return tuple(c for c in charts if c is not None)


def _mean(group: Group, css: str, quantity: Quantity) -> Series:
    """The mean over the finished runs (all runs while none is), at the epochs that all of them have."""
    runs = list((group.finished or group.runs).values())
    by_epoch: dict[int, list[float]] = {}
    for row in (row for run in runs for row in run.epochs):
        if (value := quantity(row)) is not None:
            by_epoch.setdefault(row.epoch, []).append(value)
    common = sorted((epoch, values) for epoch, values in by_epoch.items() if len(values) == len(runs))
    extent = [(e, min(v), max(v)) for e, v in common if len(v) > 1 and all(map(_drawable, v))]
    return Series(group.name, css, tuple((e, fmean(v)) for e, v in common), tuple(extent))


def chart(
    title: str, series: Sequence[Series], end: int, write: Callable[[Value], str], stretch: float = STRETCH
) -> Chart | None:
    """A chart over the epochs up to `end`; None if no series has a finite value.

    Args:
        title: name of the quantity.
        series: the curves.
        end: last epoch of the horizontal axis (an unfinished run leaves room).
        write: value -> text, for legend and tooltips.
        stretch: ratio of the largest to the smallest value above which the vertical axis is logarithmic.
    """
    series = [s for s in series if s.finite]
    if not series:
        return None
    first = min(epoch for s in series for epoch, _ in s.points)
    x = Axis(min(first, 1), max(end, first + 1, 2), LEFT, WIDTH - RIGHT)
    y = axis([v for s in series for v in s.finite], HEIGHT - BOTTOM, TOP, zero=True, stretch=stretch)
    legend = tuple((s.css, s.label, write(s.points[-1][1])) for s in series)
    last_values = ", ".join(f"{label} {last}" for _, label, last in legend)
    svg = canvas(f"{title} by epoch; last values: {last_values}")
    epochs = _round_epochs(int(x.low), int(x.high))
    grid(svg, [(x(e), f"{e:,}") for e in epochs], [(y(v), number(v)) for v in y.levels])
    for s, (css, label, last) in zip(series, legend, strict=True):
        _draw(add(svg, "g", css, title=f"{label}: {last}"), s, x, y)
    if len(series) <= TOGETHER:
        _add_readings(svg, series, x, write)
    return Chart(title, svg, "log scale" if y.logarithmic else "", legend)


def _round_epochs(first: int, last: int) -> list[int]:
    """About six round epochs between `first` and `last`; also `first` where there is room."""
    step = max(1, round(rung_above((last - first) / 7)))
    found = list(range(-(-first // step) * step, last + 1, step))
    return found if not found or found[0] - first < step / 2 else [first, *found]


def _drawable(value: Value) -> TypeGuard[float]:
    return value is not None and abs(value) <= LARGEST


def _draw(group: ET.Element, series: Series, x: Axis, y: Axis) -> None:
    """Band, curve, and a dot where a point stands alone."""
    if len(series.extent) > 1:
        upper = [(x(epoch), y(high)) for epoch, _, high in series.extent]
        lower = [(x(epoch), y(low)) for epoch, low, _ in reversed(series.extent)]
        add(group, "path", "band", d=path(upper + lower) + "Z")
    for _, piece in itertools.groupby(series.points, lambda point: _drawable(point[1])):
        points = [(x(epoch), y(value)) for epoch, value in piece if _drawable(value)]
        if len(points) > 1:
            add(group, "path", "curve", d=path(points))
        for px, py in points if len(points) == 1 else ():
            add(group, "circle", "dot", cx=px, cy=py, r=4)


def _add_readings(svg: ET.Element, series: Sequence[Series], x: Axis, write: Callable[[Value], str]) -> None:
    """Invisible columns, one for each epoch (or every k-th), that show their values when pointed at."""
    values = [dict(s.points) for s in series]
    epochs = sorted({epoch for known in values for epoch in known})
    epochs = epochs[:: -(-len(epochs) // READINGS)]
    middles = [x(epoch) for epoch in epochs]
    edges = [x.start, *((a + b) / 2 for a, b in itertools.pairwise(middles)), x.end]
    readings = add(svg, "g", "readings")
    for epoch, middle, (left, right) in zip(epochs, middles, itertools.pairwise(edges), strict=True):
        known = [f"{s.label} {write(v[epoch])}" for s, v in zip(series, values, strict=True) if epoch in v]
        column = add(readings, "g")
        add(column, "rect", x=left, y=TOP, width=right - left, height=HEIGHT - TOP - BOTTOM)
        add(column, "path", d=f"M{middle:g} {TOP}V{HEIGHT - BOTTOM}")
        text = f"epoch {epoch:,}: {', '.join(known)}"
        add(column, "text", text=text, x=WIDTH - RIGHT, y=16, text_anchor="end")
