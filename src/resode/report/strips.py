"""Strips: the error of every run as a dot, a row an arm, with the mean and its interval, as geometry.

Coordinates are pixels of a WIDTH x height view box; the scale lies close around the errors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from resode.quantities import percent, shortened
from resode.report.axes import WIDTH, Axis, Tick, around, ticks
from resode.report.comparison import Group, Row
from resode.report.statistics import Mean

ROW, FOOT, HEAD, MARGIN = 50, 30, 4, 16
NAME, ABOVE = 58, 20  # the letters of a name that fit a phone; how far it stands above its strip


@dataclass(frozen=True)
class Strip:
    """An arm: its name, colour and height; a dot and a text a run, the mean, its interval, the published."""

    name: str
    label: str
    kind: str
    at: float
    dots: tuple[tuple[float, str], ...]
    mean: float
    interval: tuple[float, float] | None
    published: float | None
    text: str


@dataclass(frozen=True)
class Strips:
    """All arms over one scale."""

    title: str
    height: float
    strips: tuple[Strip, ...]
    ticks: tuple[Tick, ...]

    @property
    def description(self) -> str:
        """The plot in words, for those who cannot see it."""
        return f"{self.title}: " + "; ".join(f"{s.name} {s.text}" for s in self.strips)


def of(groups: Sequence[Group], rows: Sequence[Row], kinds: Mapping[str, str], split: str) -> Strips | None:
    """Errors of every finished run on the images of `split`, arm by arm; None where there is none."""
    arms = {group.name: group for group in groups}
    found = [(arms[row.name], row, mean) for row in rows if (mean := _mean(row, split)) is not None]
    if not found:
        return None
    values = [error for _, _, mean in found for error in mean.values]
    values += [row.published for _, row, _ in found if row.published is not None and split == "test"]
    values += [end for _, _, mean in found for end in (mean.low, mean.high) if end is not None]
    axis, levels = around(values, MARGIN, WIDTH - MARGIN, float("inf"))
    strips = [
        _strip(group, row, mean, kinds[row.name], HEAD + ROW * (place + 0.65), axis, split)
        for place, (group, row, mean) in enumerate(found)
    ]
    return Strips(
        f"{split} error", HEAD + ROW * len(found) + FOOT, tuple(strips), ticks(axis, levels, _short)
    )


def _strip(group: Group, row: Row, mean: Mean, kind: str, at: float, axis: Axis, split: str) -> Strip:
    dots = [(axis(error), f"seed {seed}: {percent(error)}") for seed, error in group.errors(split).items()]
    interval = None if mean.low is None or mean.high is None else (axis(mean.low), axis(mean.high))
    published = axis(row.published) if row.published is not None and split == "test" else None
    text = percent(mean.mean) + (f" of {mean.n} seeds" if mean.n > 1 else "")
    label = shortened(row.name, NAME)
    return Strip(row.name, label, kind, at, tuple(dots), axis(mean.mean), interval, published, text)


def _mean(row: Row, split: str) -> Mean | None:
    return row.test if split == "test" else row.validation


def _short(value: float) -> str:
    return f"{value:g} %"
