"""Strips: the error of every run as a dot, a row for each arm, with the mean and its interval."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

from resode.quantities import percent, shortened
from resode.report.axes import Axis, axis
from resode.report.chart import WIDTH, Chart, add, canvas
from resode.report.comparison import Group, Row
from resode.report.statistics import Mean

ROW, HEAD, FOOT, MARGIN = 50, 4, 30, 16
LETTERS = 58  # of a name that fit a phone


def of_groups(
    groups: Sequence[Group], rows: Sequence[Row], css: Mapping[str, str], split: str
) -> Chart | None:
    """The error of every finished run on the images of `split`, arm by arm; None if there is none."""
    arms = {group.name: group for group in groups}
    known = [(row, mean) for row in rows if (mean := row.on(split)) is not None]
    if not known:
        return None
    values = [value for _, mean in known for value in (*mean.values, mean.low, mean.high)]
    values += [row.published for row, _ in known if split == "test"]
    x = axis([v for v in values if v is not None], MARGIN, WIDTH - MARGIN, zero=False, stretch=math.inf)
    height = HEAD + ROW * len(known) + FOOT
    svg = canvas(f"{split} error: {'; '.join(f'{row.name} {_text(mean)}' for row, mean in known)}", height)
    lines = add(svg, "g", "grid")
    for level in x.levels:
        add(lines, "path", d=f"M{x(level):g} {HEAD}V{height - FOOT}")
        add(lines, "text", text=f"{level:g} %", x=x(level), y=height - 8, text_anchor="middle")
    for place, (row, mean) in enumerate(known):
        strip = add(svg, "g", css[row.name])
        published = row.published if split == "test" else None
        _draw(strip, arms[row.name].errors(split), row.name, mean, published, x, HEAD + ROW * (place + 0.65))
    note = "Dots are runs"
    if any(mean.n > 1 for _, mean in known):
        note += ", bars means over seeds, bands their 95 % intervals"
    if split == "test" and any(row.published is not None for row, _ in known):
        note += "; dashed marks are published errors"
        others = {row.published_as: row.name for row, _ in known if row.published_as}
        note += "".join(f" ({name}: {how})" for how, name in others.items())
    return Chart(f"{split} error", svg, f"{note}.")


def _draw(
    strip: ET.Element,
    errors: Mapping[int, float],
    name: str,
    mean: Mean,
    published: float | None,
    x: Axis,
    y: float,
) -> None:
    """The name, and below it the interval, the published error, the runs and their mean."""
    text = f"{name}: {_text(mean)}"
    label = shortened(name, LETTERS)
    add(strip, "text", "name", text=label, title=text, x=MARGIN, y=y - 20, dy=".35em")
    if mean.low is not None and mean.high is not None:
        add(strip, "path", "interval", d=f"M{x(mean.low):g} {y:g}H{x(mean.high):g}")
    if published is not None:
        add(strip, "path", "published", title="published", d=f"M{x(published):g} {y - 9:g}v18")
    for seed, error in errors.items():
        title = f"{name}, seed {seed}: {percent(error)}"
        add(strip, "circle", "dot", title=title, cx=x(error), cy=y, r=4.5)
    if mean.n > 1:
        add(strip, "path", "mean", title=f"{name}, mean: {_text(mean)}", d=f"M{x(mean.mean):g} {y - 9:g}v18")


def _text(mean: Mean) -> str:
    return percent(mean.mean) + (f" of {mean.n} seeds" if mean.n > 1 else "")
