"""Charts as inline SVG: elements carry classes, style.css gives them colours and sizes.

Coordinates are pixels of a WIDTH x HEIGHT view box.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass

WIDTH, HEIGHT = 600, 330
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 28, 34  # margins of the frame

Tick = tuple[float, str]  # pixel, label


@dataclass(frozen=True)
class Chart:
    """A chart: title, SVG, a note for the reader, and a legend of (class, label, last value)."""

    title: str
    svg: ET.Element
    note: str = ""
    legend: tuple[tuple[str, str, str], ...] = ()

    def __html__(self) -> str:
        """The SVG as text; ElementTree has escaped it, so Jinja inserts it unchanged."""
        return ET.tostring(self.svg, encoding="unicode")


def canvas(description: str, height: float = HEIGHT) -> ET.Element:
    """An empty chart; `description` is what a screen reader says."""
    return ET.Element(
        "svg", viewBox=f"0 0 {WIDTH} {height:g}", role="img", attrib={"aria-label": description}
    )


def add(
    parent: ET.Element, tag: str, css: str = "", *, text: str = "", title: str = "", **attributes: float | str
) -> ET.Element:
    """Append an SVG element with a class, a text, a tooltip (`title`); `text_anchor` is `text-anchor`."""
    element = ET.SubElement(parent, tag, {"class": css} if css else {})
    for name, value in attributes.items():
        element.set(name.replace("_", "-"), value if isinstance(value, str) else f"{value:g}")
    element.text = text
    if title:
        ET.SubElement(element, "title").text = title
    return element


def grid(svg: ET.Element, x: Iterable[Tick], y: Iterable[Tick]) -> None:
    """The labels of both axes, and a line at each label of the vertical one."""
    group = add(svg, "g", "grid")
    for at, label in y:
        add(group, "path", d=f"M{LEFT} {at:g}H{WIDTH - RIGHT}")
        add(group, "text", text=label, x=LEFT - 8, y=at, dy=".35em", text_anchor="end")
    for at, label in x:
        add(group, "text", text=label, x=at, y=HEIGHT - 8, text_anchor="middle")


def path(points: Iterable[tuple[float, float]]) -> str:
    """A polyline in SVG's notation."""
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
