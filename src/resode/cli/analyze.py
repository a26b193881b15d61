"""`resode analyze`: a network read as a partial differential equation, and as an ordinary one in depth."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resode.cli import depth as column
from resode.cli.completion import network_or_model_names
from resode.cli.options import DataOption, DeviceOption, JsonOption, PluginOption
from resode.errors import InputError
from resode.plugins import load_plugins

if TYPE_CHECKING:
    from rich.table import Table

    from resode.analysis import KernelDecomposition, Term, VectorField


def analyze(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A run, a checkpoint, a .safetensors file, or the name of a model.",
            autocompletion=network_or_model_names,
        ),
    ],
    pde: Annotated[bool, typer.Option("--pde", help="Every 3x3 kernel as a differential operator.")] = False,
    twist: Annotated[
        bool, typer.Option("--twist", help="The vector field of every twisted convolution.")
    ] = False,
    depth: Annotated[
        bool,
        typer.Option("--depth", help="Whether a network is the equation that its layers discretise."),
    ] = False,
    data: DataOption = None,
    images: Annotated[
        int | None,
        typer.Option("--images", metavar="N", min=1, help="Test images for --depth, the first ones."),
    ] = None,
    device: DeviceOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for the files (default: RUN/analysis, or NAME-analysis beside the file).",
        ),
    ] = None,
    json_: JsonOption = False,
    plugin: PluginOption = None,
) -> None:
    """Read a network as a partial differential equation: reaction, advection, diffusion, velocities.

    --pde: the table of network terms and PDE terms; for every 3x3 kernel the shares of its parts, its
    strength, and whether it smooths, in pde.csv and pde.png. --twist: for every twisted layer dilation,
    rotation and strain, in twist.csv, and drawn in twist-stage1.png, ... Default: whichever of these two the
    network has.

    --depth: the same theta(t) in 2, 4 and 8 times the steps and by Euler, Heun and RK4: the error on the test
    images, the observed order, the distance to the flow; smoothness of theta in depth, reversal, growth, and
    a verdict by stated rules, in depth.json and the page depth.html. The report of a run then shows it, too.

    Examples:

        resode analyze runs/r20

        resode analyze akamaster20.safetensors --pde --out pde

        resode analyze runs/r20-twisted --twist

        resode analyze he_resnet20 --json

        resode analyze runs/rk4 --depth --images 1000

    \f
    """
    load_plugins(plugin)
    column.check(depth, pde or twist, {"--data": data, "--images": images, "--device": device})
    if depth:
        _depth(path, data, images, device, out, json_)
        return
    from resode.analysis import reading
    from resode.cli.console import note
    from resode.cli.console import out as stdout

    found = reading.read(path, with_pde=pde, with_twist=twist)
    if found.new:
        note(f"{path}: new weights (seed 0); nothing here was learned")
    if line := found.state.note(path):
        note(line)
    files = [str(file) for file in found.write(out)]
    if json_:
        print(json.dumps(found.record() | {"files": files}, ensure_ascii=False, allow_nan=False))
        return
    if found.kernels:
        stdout.print(_terms(found.terms))
        stdout.print(*_strengths(found.kernels, stdout.width))
    if found.fields:
        stdout.print(*_velocities(found.fields, stdout.width))
    for file in files:
        note(f"written: {file}")


def _depth(
    path: str, data: str | None, images: int | None, device: str | None, out: Path | None, json_: bool
) -> None:
    from resode.analysis.reading import folder_of
    from resode.cli.console import note
    from resode.training.records.networks import is_model

    if is_model(path):
        raise InputError(f"{path}: is a model without trained weights; give a run or a .safetensors file")
    found = column.measured(path, data, images, device)
    files = column.written(found, out or folder_of(path))
    if json_:
        record = {"path": path, "model": found.model, "depth": found.record(), "files": files}
        print(json.dumps(record, ensure_ascii=False, allow_nan=False))
        return
    column.show(found)
    for file in files:
        note(f"written: {file}")


def _terms(terms: "Sequence[Term]") -> "Table":
    from rich.text import Text

    from resode.cli.console import table

    shown = table("network term", "PDE term", "here", "count", words=3)
    for term in terms:
        shown.add_row(*map(Text, (term.network, term.pde, term.here, f"{term.count:,}")))
    return shown


def _strengths(kernels: "Sequence[KernelDecomposition]", width: int) -> "list[Table]":
    """The mean of each stage and kind of kernel."""
    from resode.analysis.decomposition import INDEPENDENT, INDEPENDENT_SMOOTHING
    from resode.analysis.reading import kernel_means
    from resode.cli.console import fitted

    rows = []
    for mean in kernel_means(kernels):
        stage = "outside of stages" if mean.stage is None else f"stage {mean.stage}"
        rows.append(
            [
                stage if mean.term == "W" else f"{stage}, {mean.term}",
                *(f"{100 * mean.shares[part]:.0f} %" for part in INDEPENDENT),
                f"{mean.strength:.3g}",
                "-" if mean.smoothing is None else f"{mean.smoothing:+.2f} px²",
                f"{mean.count:,}",
            ]
        )
    shares = [f"{100 * share:.0f} %" for share in INDEPENDENT.values()]
    rows.append(["independent entries, to compare", *shares, "", f"{INDEPENDENT_SMOOTHING:+.2f} px²", ""])
    heads = ("3x3 kernels (means)", *INDEPENDENT, "strength", "smoothing", "count")
    return fitted(heads, rows, width=width)


def _velocities(fields: "Sequence[VectorField]", width: int) -> "list[Table]":
    from resode.cli.console import fitted

    names = ("constant", "dilation", "rotation", "strain", "third_order", "even")
    heads = ("twisted layer", "tie", *(name.replace("_", "\n") for name in names), "pattern\nexplains")
    rows = [
        [
            field.name, field.tie, *(f"{getattr(field, name):.3g}" for name in names),
            f"{100 * field.share:.0f} %" if field.share else "-",
        ]
        for field in fields
    ]  # fmt: skip
    title = "velocities in pixels, at X = 1 (the constant one everywhere)"
    return fitted(heads, rows, words=2, title=title, width=width)
