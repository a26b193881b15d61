"""Scatter plots: the mean error of every arm against a cost, with the Pareto front."""

import itertools
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence

from resode.quantities import count, duration, number, percent, shortened, size
from resode.report.axes import axis
from resode.report.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Tick, add, canvas, grid
from resode.report.comparison import Row

LETTER, LINE = 9.0, 17.0  # width of a letter and height of a line on a phone, in pixels
LETTERS = 28  # of a label; so many fit to the left or to the right of any point

Label = tuple[float, float, float]  # left, right, height of its middle

COSTS: dict[str, tuple[Callable[[Row], float | None], Callable[[float], str]]] = {
    "multiply-adds of an image": (lambda r: r.multiply_adds, lambda v: f"{number(v / 1e6)} M"),
    "parameters": (lambda r: r.parameters, lambda v: count(round(v))),
    "training time": (lambda r: r.seconds, duration),
    "peak memory": (lambda r: r.peak_memory_bytes, lambda v: size(round(v))),
}


def of_rows(rows: Sequence[Row], css: Mapping[str, str], split: str) -> tuple[Chart, ...]:
    """A chart for every cost in which the arms differ."""
    charts = []
    for name, (cost, write) in COSTS.items():
        known = [(row, x, y.mean) for row in rows if (x := cost(row)) is not None and (y := row.on(split))]
        if len({x for _, x, _ in known}) > 1:
            charts.append(_chart(f"{split.capitalize()} error against {name}", known, css, write))
    return tuple(charts)


def _chart(
    title: str,
    known: Sequence[tuple[Row, float, float]],
    css: Mapping[str, str],
    write: Callable[[float], str],
) -> Chart:
    x = axis([cost for _, cost, _ in known], LEFT, WIDTH - RIGHT - 10, zero=False)
    y = axis([error for *_, error in known], HEIGHT - BOTTOM, TOP, zero=False)
    texts = [f"{row.name}: {percent(error)}, {write(cost)}" for row, cost, error in known]
    svg = canvas(f"{title}: {'; '.join(texts)}")
    grid(svg, _spaced([(x(v), write(v)) for v in x.levels]), [(y(v), f"{v:g} %") for v in y.levels])
    points = [(x(cost), y(error)) for _, cost, error in known]
    front = pareto([(cost, error) for _, cost, error in known])
    (left, top), *rest = sorted(points[place] for place in front)
    add(svg, "path", "front", d=f"M{left:g} {top:g}" + "".join(f"H{px:g}V{py:g}" for px, py in rest))
    labels: list[Label] = []
    for place in sorted(range(len(known)), key=lambda place: points[place][1]):
        (px, py), row = points[place], known[place][0]
        group = add(svg, "g", css[row.name])
        dot = "dot" if place in front else "dot beaten"
        add(group, "circle", dot, title=texts[place], cx=px, cy=py, r=5)
        labels.append(_label(group, shortened(row.name, LETTERS), px, py, labels))
    logs = [name for name, scale in (("log x", x), ("log y", y)) if scale.logarithmic]
    return Chart(title, svg, ", ".join(logs))


def pareto(points: Sequence[tuple[float, float]]) -> set[int]:
    """Indices of the points that no other beats in one coordinate without losing in the other."""
    return {
        place
        for place, (x, y) in enumerate(points)
        if not any(a <= x and b <= y and (a < x or b < y) for a, b in points)
    }


def _label(group: ET.Element, text: str, x: float, y: float, others: Sequence[Label]) -> Label:
    """Write a label beside a point, left where the right has no room, at the closest height that is free."""
    width = LETTER * len(text)
    left = x + 10 if x + 10 + width <= WIDTH else x - 10 - width
    moves = sorted((k * LINE / 2 for k in range(-16, 17)), key=abs)
    overlapping = [at for a, b, at in others if left < b and a < left + width]
    free = (y + move for move in moves if all(abs(y + move - at) >= LINE for at in overlapping))
    height = round(next(free, y), 1)
    anchor, at = ("start", left) if left > x else ("end", x - 10)
    add(group, "text", "name", text=text, x=at, y=height, dy=".35em", text_anchor=anchor)
    return left, left + width, height


def _spaced(ticks: Sequence[Tick]) -> Sequence[Tick]:
    """Every k-th label, so that none touches the next."""
    widest = LETTER * max(len(label) for _, label in ticks) + 8
    gap = min(b - a for (a, _), (b, _) in itertools.pairwise(ticks))
    return ticks[:: math.ceil(widest / gap)]
