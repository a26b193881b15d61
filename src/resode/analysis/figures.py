"""Figures: the parts of every kernel, and the vector fields of a stage, as PNG files.

Drawn with matplotlib's objects and its Agg canvas: no window, no global state.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from resode import atomic
from resode.analysis.parts import INDEPENDENT, INDEPENDENT_SMOOTHING, KernelStrength
from resode.analysis.velocities import VectorField

INK, MUTED, PALE = "#1f2933", "#66727e", "#e4e8eb"
PARTS: Mapping[str, str] = {
    "reaction": "#1f6f8b",
    "advection": "#d9822b",
    "diffusion": "#5b8c2a",
    "mixed": "#b9c2ca",
}
MOTIONS: Mapping[str, str] = {"dilation": "#7c5295", "rotation": "#d9822b", "strain": "#2a9d8f"}
DPI, SMALL, TINY = 150, 8.0, 7.0
TALLEST = 60.0  # inches; networks of more layers get thinner bars
ARROWS = 9  # along each side of the image


def draw_parts(rows: Sequence[KernelStrength], title: str, path: Path) -> None:
    """Shares, strength and smoothing of each kernel, the first layer on top: time runs downwards.

    Args:
        rows: as of `resode.analysis.pde`; at least one.
        title: what is drawn.
        path: the PNG file.

    Raises:
        ResourceError: the file cannot be written.
    """
    places, stages = _places(rows)
    end = places[-1] + 1
    height = min(1.75 + 0.19 * end, TALLEST)
    figure = _figure(9.6, height)
    shares, strength, smoothing = figure.subplots(
        1, 3, sharey=True, gridspec_kw={"width_ratios": (2.6, 1, 1)}
    )
    _shares(shares, rows, places)
    _strengths(strength, rows, places)
    _smoothing(smoothing, rows, places)
    _label_layers(shares, rows, places, height / end)
    for axes in (shares, strength, smoothing):
        _separate(axes, stages, end)
    for label, (first, last) in stages.items():
        smoothing.annotate(
            label, (1.02, (first + last) / 2), xycoords=("axes fraction", "data"),
            fontsize=SMALL, color=INK, va="center", annotation_clip=False,
        )  # fmt: skip
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    handles = [*shares.get_legend_handles_labels()[0], *smoothing.get_legend_handles_labels()[0]]
    figure.legend(
        handles=handles, loc="outside lower left", ncols=5, frameon=False,
        fontsize=SMALL, labelcolor=INK, handlelength=1.2, handleheight=1,
    )  # fmt: skip
    _write(figure, path)


def _places(rows: Sequence[KernelStrength]) -> tuple[list[float], dict[str, tuple[float, float]]]:
    """Where the bar of each kernel stands, and from where to where each stage reaches."""
    places, stages, at = [], dict[str, tuple[float, float]](), -1.0
    for number, row in enumerate(rows):
        at += 1.0 if number == 0 or row.stage == rows[number - 1].stage else 1.8
        places.append(at)
        if row.stage is not None:
            label = f"stage {row.stage}"
            stages[label] = (stages.get(label, (at, at))[0], at)
    return places, stages


def _separate(axes: Axes, stages: Mapping[str, tuple[float, float]], end: float) -> None:
    """Time downwards, a line above each stage, no frame."""
    axes.set_ylim(end, -1.9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(axis="x", labelsize=SMALL, colors=MUTED)
    axes.tick_params(axis="y", length=0)
    for first, _ in stages.values():
        axes.axhline(first - 0.9, color=PALE, linewidth=1, zorder=0)


def _shares(axes: Axes, rows: Sequence[KernelStrength], places: Sequence[float]) -> None:
    left = [0.0] * len(rows)
    reference = 0.0
    for part, colour in PARTS.items():
        widths = [100 * row.shares[part] for row in rows]
        axes.barh(places, widths, left=left, height=0.78, color=colour, label=part)
        axes.barh([-1.35], [100 * INDEPENDENT[part]], left=[reference], height=0.5, color=colour, alpha=0.55)
        left = [a + b for a, b in zip(left, widths, strict=True)]
        reference += 100 * INDEPENDENT[part]
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the kernel's sum of squares, %", fontsize=SMALL, color=INK)


def _strengths(axes: Axes, rows: Sequence[KernelStrength], places: Sequence[float]) -> None:
    axes.hlines(places, 0, [row.strength for row in rows], color=PALE, linewidth=2.5)
    axes.plot([row.strength for row in rows], places, "o", color=INK, markersize=3.5)
    axes.set_xlim(0, 1.12 * max(row.strength for row in rows) or 1)
    axes.set_xlabel("strength S", fontsize=SMALL, color=INK)


def _smoothing(axes: Axes, rows: Sequence[KernelStrength], places: Sequence[float]) -> None:
    known = [(row.smoothing, at) for row, at in zip(rows, places, strict=True) if row.smoothing is not None]
    colours = [PARTS["diffusion"] if value >= 0 else PARTS["advection"] for value, _ in known]
    axes.barh([at for _, at in known], [value for value, _ in known], height=0.5, color=colours)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.axvline(
        INDEPENDENT_SMOOTHING, color=MUTED, linewidth=0.8, linestyle=":", label="independent entries"
    )
    bound = 1.15 * max([INDEPENDENT_SMOOTHING, *(abs(value) for value, _ in known)])
    lowest = min([0.0, *(value for value, _ in known)])
    axes.set_xlim(-bound if lowest < -0.25 * bound else min(1.3 * lowest, -0.12 * bound), bound)
    axes.set_xlabel("sharpens < 0 < smooths, px²", fontsize=SMALL, color=INK)


def _label_layers(axes: Axes, rows: Sequence[KernelStrength], places: Sequence[float], inch: float) -> None:
    """The names of the layers, as many as there is room for."""
    every = max(1, math.ceil(0.13 / inch))
    labels = [_label(row) for row in rows]
    axes.set_yticks(
        [-1.35, *places[every - 1 :: every]],
        ["independent entries", *labels[every - 1 :: every]],
        fontsize=TINY,
        color=INK,
    )
    axes.get_yticklabels()[0].set_color(MUTED)


def _label(row: KernelStrength) -> str:
    time = "" if row.time is None else f"   t = {row.time:g}"
    return f"{row.name}{time}" if row.term == "W" else row.term


def draw_fields(fields: Sequence[VectorField], title: str, path: Path) -> None:
    """The leading pattern of each layer over the image, and what all of its channel pairs do below.

    Args:
        fields: of one stage, as of `resode.analysis.vector_fields`; at least one.
        title: what is drawn.
        path: the PNG file.

    Raises:
        ResourceError: the file cannot be written.
    """
    columns = min(len(fields), 6 if len(fields) > 12 else 4)
    rows = math.ceil(len(fields) / columns)
    figure = _figure(max(2.4 * columns, 5.2), 2.75 * rows + 0.85)
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if number < len(fields):
            _field(axes, fields[number])
            _bar(axes, fields[number])
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    handles = [Rectangle((0, 0), 1, 1, color=colour, label=name) for name, colour in MOTIONS.items()]
    legend = figure.legend(
        handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=SMALL, labelcolor=INK,
        handlelength=1, handleheight=1, title_fontsize=TINY, alignment="left",
        title="arrows: where a pixel looks by the leading linear velocity, up to sign; no higher orders\n"
        "percentages and bars: shares of the sum of squares over all channel pairs",
    )  # fmt: skip
    legend.get_title().set_color(MUTED)
    _write(figure, path)


def _field(axes: Axes, field: VectorField) -> None:
    """Arrows from each pixel to where it looks; X to the right, Y down, the longest as long as fits."""
    side = torch.linspace(-0.5, 0.5, 2 * ARROWS + 1, dtype=torch.float64)[1::2]
    y, x = torch.meshgrid(side, side, indexing="ij")
    axes.add_patch(Rectangle((-0.5, -0.5), 1, 1, facecolor="#f6f7f8", edgecolor=MUTED, linewidth=0.6))
    strength = field.pattern.strength
    if strength:
        u, v = field.pattern(x, y)
        longest = float(torch.hypot(u, v).max())
        axes.quiver(
            x.numpy(), y.numpy(), u.numpy(), v.numpy(), angles="xy", scale_units="xy",
            scale=longest * ARROWS / 0.85,  # the longest arrow nearly reaches the next
            pivot="mid", color=INK, width=0.0075, headwidth=4, headlength=4.5, headaxislength=4,
        )  # fmt: skip
        text = f"{100 * field.share:.0f} % of the squares, {_longest(field):.2g} px at a corner"
    else:
        axes.text(0, 0, "no first-order part", ha="center", va="center", fontsize=SMALL, color=MUTED)
        text = ""
    axes.set_xlim(-0.52, 0.52)
    axes.set_ylim(0.6, -0.52)
    axes.set_aspect("equal")
    axes.set_title(field.name, fontsize=SMALL, color=INK, pad=14, fontweight="bold")
    axes.text(0, -0.53, text, fontsize=TINY, color=MUTED, ha="center", va="bottom")


def _longest(field: VectorField) -> float:
    """The largest |v| of the pattern at the four corners of the image, in pixels."""
    corners = torch.tensor([[-0.5, -0.5], [0.5, -0.5]], dtype=torch.float64).T
    return float(torch.hypot(*field.pattern(corners[0], corners[1])).max())


def _bar(axes: Axes, field: VectorField) -> None:
    """Dilation, rotation and strain of all channel pairs, below the image."""
    left = -0.5
    for name, colour in MOTIONS.items():
        axes.add_patch(Rectangle((left, 0.54), field.shares[name], 0.045, facecolor=colour))
        left += field.shares[name]


def _figure(width: float, height: float) -> Figure:
    layout = ConstrainedLayoutEngine(wspace=0.06, hspace=0.06)
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _write(figure: Figure, path: Path) -> None:
    """Write a PNG file durably; the same figure gives the same bytes."""
    atomic.write(
        path,
        lambda temporary: figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None}),
    )
