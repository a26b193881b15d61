"""Line charts: quantities over time, over steps or over stages, on linear or logarithmic axes.

A value that is missing, infinite or NaN leaves a gap; a point that stands alone is a dot.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from resode.quantities import number
from resode.report.axes import LARGEST, Axis, axis, logarithmic
from resode.report.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, add, canvas, grid, path

MARKED = 12  # points of a line up to which each has a dot


@dataclass(frozen=True)
class Line:
    """A line: its label, what the legend says beside it, its CSS class, and the points (x, y)."""

    label: str
    remark: str
    css: str
    points: tuple[tuple[float, float | None], ...]

    def drawable(self, positive: bool) -> tuple[tuple[float, float | None], ...]:
        """The points, None where a value cannot be drawn."""
        return tuple((x, y if _drawable(y, positive) else None) for x, y in self.points)


def lines(
    title: str,
    series: Sequence[Line],
    *,
    ticks: Sequence[float] = (),
    write_x: Callable[[float], str] = number,
    write: Callable[[float], str] = number,
    log_x: bool = False,
    log_y: bool = False,
    zero: bool = True,
    note: str = "",
) -> Chart | None:
    """A chart of lines; None where nothing can be drawn.

    Args:
        title: of the chart.
        series: the lines.
        ticks: labels of the horizontal axis (default: round numbers).
        write_x: x -> text.
        write: y -> text.
        log_x: a logarithmic horizontal axis.
        log_y: a logarithmic vertical axis.
        zero: whether a linear vertical axis begins at 0; otherwise it is close around the values.
        note: for the reader, beside the title.
    """
    known = [(line, line.drawable(log_y)) for line in series]
    known = [(line, points) for line, points in known if any(y is not None for _, y in points)]
    if not known:
        return None
    xs = [x for _, points in known for x, _ in points]
    values = [y for _, points in known for _, y in points if y is not None]
    horizontal = _horizontal(xs, ticks, log_x)
    bottom = HEIGHT - BOTTOM
    vertical = (
        logarithmic(min(values), max(max(values), 1.5 * min(values)), bottom, TOP)
        if log_y
        else axis(values, bottom, TOP, zero=zero, stretch=math.inf)
    )
    svg = canvas(f"{title}: {'; '.join(_spoken(line, points, write_x, write) for line, points in known)}")
    grid(
        svg,
        [(horizontal(x), write_x(x)) for x in horizontal.levels],
        [(vertical(y), write(y)) for y in vertical.levels],
    )
    for line, points in known:
        group = add(svg, "g", line.css, title=" ".join(filter(None, (line.label, line.remark))))
        for drawn, piece in itertools.groupby(points, lambda point: point[1] is not None):
            placed = [(x, y) for x, y in piece if y is not None] if drawn else []
            if len(placed) > 1:
                add(group, "path", "curve", d=path((horizontal(x), vertical(y)) for x, y in placed))
            for x, y in placed if len(points) <= MARKED else ():
                text = f"{line.label}, {write_x(x)}: {write(y)}"
                add(group, "circle", "dot", title=text, cx=horizontal(x), cy=vertical(y), r=4)
    logs = ", ".join(name for name, is_log in (("log x", log_x), ("log y", log_y)) if is_log)
    legend = tuple((line.css, line.label, line.remark) for line, _ in known)
    return Chart(title, svg, " \N{MIDDLE DOT} ".join(filter(None, (note, logs))), legend)


def _horizontal(xs: Sequence[float], ticks: Sequence[float], logs: bool) -> Axis:
    low, high = min(xs), max(xs)
    if low == high:
        low, high = (low / 2, high * 2) if logs else (low - 0.5, high + 0.5)
    start, end = float(LEFT), float(WIDTH - RIGHT)
    if ticks:
        margin = 0.0 if logs else (high - low) / 8
        return Axis(low - margin, high + margin, start, end, tuple(ticks), logs)
    if logs:
        return logarithmic(low, high, start, end)
    found = axis((low, high), start, end, zero=False, stretch=math.inf)
    inside = tuple(level for level in found.levels if low <= level <= high)
    return Axis(low, high, start, end, inside)


def _drawable(y: float | None, positive: bool) -> bool:
    return y is not None and abs(y) <= LARGEST and (y > 1 / LARGEST or not positive)


def _spoken(
    line: Line,
    points: Sequence[tuple[float, float | None]],
    write_x: Callable[[float], str],
    write: Callable[[float], str],
) -> str:
    """What a screen reader says: the first and the last value of a line."""
    known = [(x, y) for x, y in points if y is not None]
    ends = [known[0]] if len(known) == 1 else [known[0], known[-1]]
    texts = " to ".join(f"{write(y)} at {write_x(x)}" for x, y in ends)
    return " ".join(filter(None, (line.label, line.remark, texts)))
