"""PNG figures of kernel decompositions and of the vector fields of a stage.

Uses matplotlib's object interface and Agg canvas: no window, no global state.
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
from resode.analysis.decomposition import INDEPENDENT, INDEPENDENT_SMOOTHING, KernelDecomposition
from resode.analysis.velocities import VectorField

INK, MUTED, PALE = "#1f2933", "#66727e", "#e4e8eb"
TERM_COLOURS: Mapping[str, str] = {
    "reaction": "#1f6f8b",
    "advection": "#d9822b",
    "diffusion": "#5b8c2a",
    "mixed": "#b9c2ca",
}
MOTION_COLOURS: Mapping[str, str] = {"dilation": "#7c5295", "rotation": "#d9822b", "strain": "#2a9d8f"}
DPI, SMALL, TINY = 150, 8.0, 7.0
MAX_HEIGHT = 60.0  # inches; networks with more layers get thinner bars
ARROWS = 9  # arrows along each side of the image


def draw_kernels(rows: Sequence[KernelDecomposition], title: str, path: Path) -> None:
    """Draw shares, strength and smoothing of each kernel, the first layer on top (time runs downwards).

    Args:
        rows: result of `resode.analysis.pde`, at least one row.
        title: title of the figure.
        path: the PNG file.

    Raises:
        ResourceError: the file cannot be written.
    """
    positions, stages = _bar_positions(rows)
    end = positions[-1] + 1
    height = min(1.75 + 0.19 * end, MAX_HEIGHT)
    figure = _figure(9.6, height)
    shares, strength, smoothing = figure.subplots(
        1, 3, sharey=True, gridspec_kw={"width_ratios": (2.6, 1, 1)}
    )
    _draw_shares(shares, rows, positions)
    _draw_strengths(strength, rows, positions)
    _draw_smoothing(smoothing, rows, positions)
    _label_layers(shares, rows, positions, height / end)
    for axes in (shares, strength, smoothing):
        _style_axes(axes, stages, end)
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


def _bar_positions(rows: Sequence[KernelDecomposition]) -> tuple[list[float], dict[str, tuple[float, float]]]:
    """Position of each kernel's bar, and first and last position of each stage."""
    positions, stages, at = [], dict[str, tuple[float, float]](), -1.0
    for number, row in enumerate(rows):
        at += 1.0 if number == 0 or row.stage == rows[number - 1].stage else 1.8
        positions.append(at)
        if row.stage is not None:
            label = f"stage {row.stage}"
            stages[label] = (stages.get(label, (at, at))[0], at)
    return positions, stages


def _style_axes(axes: Axes, stages: Mapping[str, tuple[float, float]], end: float) -> None:
    """Let time run downwards, draw a line above each stage, remove the frame."""
    axes.set_ylim(end, -1.9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(axis="x", labelsize=SMALL, colors=MUTED)
    axes.tick_params(axis="y", length=0)
    for first, _ in stages.values():
        axes.axhline(first - 0.9, color=PALE, linewidth=1, zorder=0)


def _draw_shares(axes: Axes, rows: Sequence[KernelDecomposition], positions: Sequence[float]) -> None:
    left = [0.0] * len(rows)
    reference = 0.0
    for term, colour in TERM_COLOURS.items():
        widths = [100 * row.shares[term] for row in rows]
        axes.barh(positions, widths, left=left, height=0.78, color=colour, label=term)
        axes.barh([-1.35], [100 * INDEPENDENT[term]], left=[reference], height=0.5, color=colour, alpha=0.55)
        left = [a + b for a, b in zip(left, widths, strict=True)]
        reference += 100 * INDEPENDENT[term]
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the kernel's sum of squares, %", fontsize=SMALL, color=INK)


def _draw_strengths(axes: Axes, rows: Sequence[KernelDecomposition], positions: Sequence[float]) -> None:
    axes.hlines(positions, 0, [row.strength for row in rows], color=PALE, linewidth=2.5)
    axes.plot([row.strength for row in rows], positions, "o", color=INK, markersize=3.5)
    axes.set_xlim(0, 1.12 * max(row.strength for row in rows) or 1)
    axes.set_xlabel("strength S", fontsize=SMALL, color=INK)


def _draw_smoothing(axes: Axes, rows: Sequence[KernelDecomposition], positions: Sequence[float]) -> None:
    known = [
        (row.smoothing, at) for row, at in zip(rows, positions, strict=True) if row.smoothing is not None
    ]
    colours = [TERM_COLOURS["diffusion" if value >= 0 else "advection"] for value, _ in known]
    axes.barh([at for _, at in known], [value for value, _ in known], height=0.5, color=colours)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.axvline(
        INDEPENDENT_SMOOTHING, color=MUTED, linewidth=0.8, linestyle=":", label="independent entries"
    )
    bound = 1.15 * max([INDEPENDENT_SMOOTHING, *(abs(value) for value, _ in known)])
    lowest = min([0.0, *(value for value, _ in known)])
    axes.set_xlim(-bound if lowest < -0.25 * bound else min(1.3 * lowest, -0.12 * bound), bound)
    axes.set_xlabel("sharpens < 0 < smooths, px²", fontsize=SMALL, color=INK)


def _label_layers(
    axes: Axes, rows: Sequence[KernelDecomposition], positions: Sequence[float], inch: float
) -> None:
    """Label as many layers as there is room for, `inch` being the height of a bar."""
    every = max(1, math.ceil(0.13 / inch))
    labels = [_label(row) for row in rows]
    axes.set_yticks(
        [-1.35, *positions[every - 1 :: every]],
        ["independent entries", *labels[every - 1 :: every]],
        fontsize=TINY,
        color=INK,
    )
    axes.get_yticklabels()[0].set_color(MUTED)


def _label(row: KernelDecomposition) -> str:
    time = "" if row.time is None else f"   t = {row.time:g}"
    return f"{row.name}{time}" if row.term == "W" else row.term


def draw_vector_fields(fields: Sequence[VectorField], title: str, path: Path) -> None:
    """Draw the leading pattern of each layer over the image, and the shares over all channel pairs below it.

    Args:
        fields: vector fields of one stage (`resode.analysis.vector_fields`), at least one.
        title: title of the figure.
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
            _draw_arrows(axes, fields[number])
            _draw_bar(axes, fields[number])
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    handles = [Rectangle((0, 0), 1, 1, color=colour, label=name) for name, colour in MOTION_COLOURS.items()]
    legend = figure.legend(
        handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=SMALL, labelcolor=INK,
        handlelength=1, handleheight=1, title_fontsize=TINY, alignment="left",
        title="arrows: offset at which a pixel reads by the leading linear velocity, up to sign\n"
        "percentages and bars: shares of the sum of squares over all channel pairs",
    )  # fmt: skip
    legend.get_title().set_color(MUTED)
    _write(figure, path)


def _draw_arrows(axes: Axes, field: VectorField) -> None:
    """Draw v at a grid of pixels; X points right, Y down, and the longest arrow nearly reaches the next."""
    side = torch.linspace(-0.5, 0.5, 2 * ARROWS + 1, dtype=torch.float64)[1::2]
    y, x = torch.meshgrid(side, side, indexing="ij")
    axes.add_patch(Rectangle((-0.5, -0.5), 1, 1, facecolor="#f6f7f8", edgecolor=MUTED, linewidth=0.6))
    strength = field.pattern.strength
    if strength:
        u, v = field.pattern(x, y)
        longest = float(torch.hypot(u, v).max())
        axes.quiver(
            x.numpy(), y.numpy(), u.numpy(), v.numpy(), angles="xy", scale_units="xy",
            scale=longest * ARROWS / 0.85,
            pivot="mid", color=INK, width=0.0075, headwidth=4, headlength=4.5, headaxislength=4,
        )  # fmt: skip
        text = f"{100 * field.share:.0f} % of the squares, {_corner_speed(field):.2g} px at a corner"
    else:
        axes.text(0, 0, "no first-order part", ha="center", va="center", fontsize=SMALL, color=MUTED)
        text = ""
    axes.set_xlim(-0.52, 0.52)
    axes.set_ylim(0.6, -0.52)
    axes.set_aspect("equal")
    axes.set_title(field.name, fontsize=SMALL, color=INK, pad=14, fontweight="bold")
    axes.text(0, -0.53, text, fontsize=TINY, color=MUTED, ha="center", va="bottom")


def _corner_speed(field: VectorField) -> float:
    """Largest |v| of the pattern at the corners of the image, in pixels (v is odd: two suffice)."""
    corners = torch.tensor([[-0.5, -0.5], [0.5, -0.5]], dtype=torch.float64).T
    return float(torch.hypot(*field.pattern(corners[0], corners[1])).max())


def _draw_bar(axes: Axes, field: VectorField) -> None:
    """Draw the shares of dilation, rotation and strain over all channel pairs, below the image."""
    left = -0.5
    for name, colour in MOTION_COLOURS.items():
        axes.add_patch(Rectangle((left, 0.54), field.shares[name], 0.045, facecolor=colour))
        left += field.shares[name]


def _figure(width: float, height: float) -> Figure:
    layout = ConstrainedLayoutEngine(wspace=0.06, hspace=0.06)
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _write(figure: Figure, path: Path) -> None:
    """Write a PNG file atomically; the same figure gives the same bytes."""
    atomic.write(
        path,
        lambda temporary: figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None}),
    )
