"""Scatter: the mean error of every arm against what it costs, and which arms no other beats in both (Pareto).

Coordinates are pixels of a WIDTH x HEIGHT view box.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from resode.quantities import count, duration, number, percent, shortened, size
from resode.report.axes import BOTTOM, HEIGHT, LEFT, RIGHT, STRETCH, TOP, WIDTH, Tick, around, ticks
from resode.report.comparison import Row

LETTER, LINE = 8.0, 17.0  # pixels of a label on a phone
NAME = 28  # letters of a label; so many fit to the left or to the right of any point


SCALES = {(False, False): "", (True, False): "log x", (False, True): "log y", (True, True): "log x, log y"}


@dataclass(frozen=True)
class Point:
    """An arm: place, colour, its label and where that stands, whether it is on the front."""

    name: str
    label: str
    kind: str
    x: float
    y: float
    label_x: float
    label_y: float
    anchor: str
    best: bool
    text: str


@dataclass(frozen=True)
class Scatter:
    """Errors over one cost; `front` joins the arms that no other beats; `scale` says what is logarithmic."""

    title: str
    scale: str
    points: tuple[Point, ...]
    front: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]

    @property
    def description(self) -> str:
        """The plot in words, for those who cannot see it."""
        return f"{self.title}: " + "; ".join(f"{p.name} {p.text}" for p in self.points)


COSTS: dict[str, tuple[Callable[[Row], float | None], Callable[[float], str]]] = {
    "multiply-adds of an image": (lambda r: r.multiply_adds, lambda v: f"{number(v / 1e6)} M"),
    "parameters": (lambda r: r.parameters, lambda v: count(round(v))),
    "training time": (lambda r: r.seconds, duration),
    "peak memory": (lambda r: r.peak_memory_bytes, lambda v: size(round(v))),
}


def of(rows: Sequence[Row], kinds: Mapping[str, str], split: str) -> tuple[Scatter, ...]:
    """A plot for every cost in which the arms differ."""
    plots = []
    for title, (cost, write) in COSTS.items():
        known = [
            (row, x, y)
            for row in rows
            if (x := cost(row)) is not None and (y := _error(row, split)) is not None
        ]
        if len({x for _, x, _ in known}) > 1:
            plots.append(_scatter(f"{split} error against {title}", known, kinds, write))
    return tuple(plots)


def _scatter(
    title: str, known: list[tuple[Row, float, float]], kinds: Mapping[str, str], write: Callable[[float], str]
) -> Scatter:
    x, x_levels = around([cost for _, cost, _ in known], LEFT, WIDTH - RIGHT - 10, STRETCH)
    y, y_levels = around([error for *_, error in known], HEIGHT - BOTTOM, TOP, STRETCH)
    front = pareto([(cost, error) for _, cost, error in known])
    points = [
        _point(
            row.name, kinds[row.name], x(cost), y(error), place in front, f"{percent(error)}, {write(cost)}"
        )
        for place, (row, cost, error) in enumerate(known)
    ]
    on_front = sorted((points[place].x, points[place].y) for place in front)
    path = f"M{on_front[0][0]:g} {on_front[0][1]:g}" + "".join(f"H{px:g}V{py:g}" for px, py in on_front[1:])
    return Scatter(
        title=title,
        scale=SCALES[x.logarithmic, y.logarithmic],
        points=_apart(points),
        front=path,
        x_ticks=_spaced(ticks(x, x_levels, write)),
        y_ticks=ticks(y, y_levels, lambda v: f"{v:g} %"),
    )


def pareto(points: Sequence[tuple[float, float]]) -> set[int]:
    """The places of those that no other beats in one coordinate without losing in the other."""
    return {
        place
        for place, (x, y) in enumerate(points)
        if not any(a <= x and b <= y and (a < x or b < y) for a, b in points)
    }


def _point(name: str, kind: str, x: float, y: float, best: bool, text: str) -> Point:
    """A point with its label to the right, or to the left where there is no room."""
    label = shortened(name, NAME)
    left = x + 10 + LETTER * len(label) > WIDTH
    return Point(
        name, label, kind, x, y, x - 10 if left else x + 10, y, "end" if left else "start", best, text
    )


def _apart(points: list[Point]) -> tuple[Point, ...]:
    """Labels moved up or down until none lies over another."""
    placed: list[Point] = []
    for point in sorted(points, key=lambda p: p.y):
        moves = sorted((k * LINE / 2 for k in range(-16, 17)), key=abs)
        free = (m for m in moves if not any(_over(replace(point, label_y=point.y + m), p) for p in placed))
        placed.append(replace(point, label_y=round(point.y + next(free, 0.0), 1)))
    order = {p.name: p for p in placed}
    return tuple(order[p.name] for p in points)


def _over(a: Point, b: Point) -> bool:
    (a0, a1), (b0, b1) = _extent(a), _extent(b)
    return abs(a.label_y - b.label_y) < LINE and a0 < b1 and b0 < a1


def _extent(point: Point) -> tuple[float, float]:
    length = LETTER * len(point.label)
    return (
        (point.label_x - length, point.label_x)
        if point.anchor == "end"
        else (point.label_x, point.label_x + length)
    )


def _spaced(found: tuple[Tick, ...]) -> tuple[Tick, ...]:
    """Labels that do not touch: every second or third where they are long."""
    for every in itertools.count(1):
        kept = found[::every]
        gaps = [b.at - a.at for a, b in itertools.pairwise(kept)]
        widest = LETTER * max(len(tick.label) for tick in kept) + 8
        if not gaps or min(gaps) >= widest:
            return kept
    raise AssertionError


def _error(row: Row, split: str) -> float | None:
    found = row.test if split == "test" else row.validation
    return None if found is None else found.mean
