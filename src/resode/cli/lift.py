"""`resode lift`: a trained ResNet as a network of dynamic blocks."""

from pathlib import Path
from typing import Annotated

import typer

from resode.cli.completion import network_names
from resode.cli.options import ForceOption, PluginOption, check_out
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
    force: ForceOption = False,
    plugin: PluginOption = None,
) -> None:
    """Write a trained ResNet as a network of dynamic blocks that gives the same logits.

    Units of one width in a row become a block: a pre-activation unit is an Euler step, one that ends with a
    relu a step of projected Euler, with parameters that are constant on each step. The other units become
    the connectors. Everything for dynamic blocks then works on FILE: evaluate, predict, regrid, analyze. The
    optimizer state of a run is carried over to FILE.optimizer.safetensors.

    Examples:

        resode lift runs/r20 --out lifted.safetensors

        resode lift akamaster20.safetensors --out lifted20.safetensors

        resode lift short/resnet20 --out short20.safetensors

    \f
    """
    load_plugins(plugin)
    check_out(out, force)
    from resode.cli.console import note, say
    from resode.training.setup.surgery import lift_file

    done = lift_file(path, out)
    for line in done.changes:
        say(line)
    for line in (*done.notes, done.written(out)):
        note(line)
