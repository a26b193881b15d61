"""`resode regrid`: a trained network of dynamic blocks on other time grids."""

from pathlib import Path
from typing import Annotated, Any

import typer

from resode.cli.completion import network_names
from resode.cli.options import DataOption, DeviceOption, ForceOption, PluginOption, check_out
from resode.errors import InputError, nearest
from resode.plugins import load_plugins

WORDS = {"--states": ("double", "halve", "keep"), "--controls": ("double", "halve", "keep", "states")}


def regrid(
    path: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A run, a checkpoint or a .safetensors file.", autocompletion=network_names
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The .safetensors file to write.")],
    states: Annotated[
        str,
        typer.Option(
            "--states",
            metavar="GRID",
            help="double, halve, keep, or nodes like 0,0.5,1,2; one for each stage: double/keep.",
        ),
    ] = "keep",
    controls: Annotated[
        str,
        typer.Option("--controls", metavar="GRID", help="The same, or states: a node at each state node."),
    ] = "keep",
    data: DataOption = None,
    device: DeviceOption = None,
    force: ForceOption = False,
    plugin: PluginOption = None,
) -> None:
    """Put a network of dynamic blocks on other time grids: the same theta(t), the same flow.

    Running statistics are re-estimated on the training images of the run, or on those of --data. The
    optimizer state of a run is carried over to FILE.optimizer.safetensors: continue training with `--init
    FILE --set init.optimizer=true`.

    Examples:

        resode regrid runs/rk4 --states double --controls double --out fine.safetensors

        resode regrid runs/rk4 --states 0,0.5,1,2,4 --controls states --out graded.safetensors

        resode regrid runs/rk4 --states double/double/keep --out mixed.safetensors

        resode train dynamicblocks/rk4 --init fine.safetensors --set init.optimizer=true

    \f
    """
    load_plugins(plugin)
    grids = {"states": _grids("--states", states), "controls": _grids("--controls", controls)}
    if states == controls == "keep":
        raise InputError("nothing to change: give --states or --controls, e.g. --states double")
    check_out(out, force)
    from resode.cli.console import note, say
    from resode.training.setup.surgery import regrid_file

    done = regrid_file(path, out, **grids, data=data, device=device or "auto")
    for line in done.changes:
        say(line)
    for line in (*done.notes, done.written(out)):
        note(line)


def _grids(option: str, text: str) -> Any:
    """The change of all grids, or a list of changes, one for each stage."""
    changes = [_grid(option, part.strip()) for part in text.split("/")]
    return changes if len(changes) > 1 else changes[0]


def _grid(option: str, text: str) -> str | list[float]:
    """A change of a grid: a word or a list of nodes."""
    if not any(letter.isdigit() for letter in text):
        words = WORDS[option]
        if text not in words:
            raise InputError(
                f"{option} {text}{nearest(text, words)} ({', '.join(words)}, or nodes like 0,0.5,1,2)"
            )
        return text
    try:
        return [float(node) for node in text.strip("[]").split(",")]
    except ValueError:
        raise InputError(f"{option} {text}: nodes are numbers with commas between, like 0,0.5,1,2") from None
