"""`resode lift`: a trained ResNet as a network of dynamic blocks."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from resode.cli.completion import network_names
from resode.cli.options import DataOption, DeviceOption, ForceOption, PluginOption, check_out
from resode.plugins import load_plugins


def lift(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A run, a checkpoint, a .safetensors file, or the name of pretrained weights.",
            autocompletion=network_names,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The .safetensors file to write.")],
    controls: Annotated[
        int | None,
        typer.Option(
            "--controls",
            metavar="N",
            min=1,
            help="N controls for each block, by least squares (default: all).",
        ),
    ] = None,
    basis: Annotated[
        Literal["linear", "constant", "quadratic", "cubic"],
        typer.Option("--basis", help="theta(t) between these controls; quadratic and cubic are B-splines."),
    ] = "linear",
    data: DataOption = None,
    device: DeviceOption = None,
    force: ForceOption = False,
    plugin: PluginOption = None,
) -> None:
    """Write a trained ResNet as a network of dynamic blocks that gives the same logits.

    Units of one width in a row become a block: a pre-activation unit is an Euler step, one that ends with a
    relu a step of projected Euler, with parameters that are constant on each step. The other units become
    the connectors. Everything for dynamic blocks then works on FILE: evaluate, predict, regrid, analyze. The
    optimizer state of a run is carried over to FILE.optimizer.safetensors.

    --controls N keeps N controls for each block, those whose theta(t) is nearest to the units' weights, and
    estimates running statistics anew on the training images of the run or of --data. --data also prints the
    test error before and after.

    Examples:

        resode lift runs/r20 --out lifted.safetensors

        resode lift akamaster20.safetensors --out lifted20.safetensors

        resode lift runs/r20 --controls 1 --basis constant --data digits --out fewer.safetensors

    \f
    """
    load_plugins(plugin)
    check_out(out, force)
    from resode.cli.console import note, say
    from resode.training.setup.surgery import lift_file

    done = lift_file(
        path, out, controls=controls, interpolation=basis, data=data, device=device or "auto"
    )  # fmt: skip
    for line in done.changes:
        say(line)
    for line in (*done.notes, done.written(out)):
        note(line)
    if data is not None:
        _compare(path, out, data, device or "auto")


def _compare(path: str, out: Path, data: str, device: str) -> None:
    """Print test errors, controls, parameters and multiply-adds before and after."""
    from resode.analysis.lift import compare
    from resode.cli.console import out as stdout
    from resode.cli.console import table

    shown = table("network", "controls", "parameters", "multiply-adds", "test error")
    for row in compare(path, out, data=data, device=device):
        shown.add_row(
            row.network,
            "-" if row.controls is None else f"{row.controls}",
            f"{row.parameters:,}",
            f"{row.multiply_adds / 1e6:,.1f} M",
            f"{row.top1_error:.2f} %",
        )
    stdout.print(shown)
