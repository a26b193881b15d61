"""`resode import`: published checkpoints of other programs, converted."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from resode.cli.options import ForceOption
from resode.errors import InputError


def import_(
    format_: Annotated[
        Literal["akamaster", "fattorib", "kuangliu", "dynamicblocks"],
        typer.Argument(metavar="FORMAT", help="akamaster, fattorib, kuangliu or dynamicblocks."),
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The published checkpoint (.th, .pth, .pt).")],
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="The model (`resode list models`).")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The .safetensors file to write.")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="dynamicblocks: scheme (rk1, rk4), states, controls, layer; mean, std. Repeatable.",
        ),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Convert a published checkpoint; nothing in it is executed.

    Its normalisation is stored with the weights, so evaluate and predict apply it. A file of DynamicBlocks
    does not hold its time grids, nor its scheme unless that is rk1: give them by --set, and
    layer=preact_double for its PreactDoubleLayer. Its normalisation defaults to the toolbox's for CIFAR, mean
    0.5 and std 1; --set mean=... and --set std=... override it.

    Examples:

        resode import akamaster resnet20.th --model he_resnet20 --out akamaster20.safetensors

        resode import fattorib resnet20.pth --model he_resnet20 --out fattorib20.safetensors

        resode import dynamicblocks net.pt --model dynamicblocks --set scheme=rk4 --set states=[0,1,2,3,4]
        --set controls=[0,1,2,3,4] --out net.safetensors

    \f
    """
    from resode import interop, weights
    from resode.cli.console import note
    from resode.training.recipe.reading import parse_overrides

    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: the file must end in .safetensors")
    if out.exists() and not force:
        raise InputError(f"--out {out}: exists already; choose another name or add --force")
    options = dict(parse_overrides(settings or ()))
    conversion = interop.convert(format_, file, model=model, options=options)
    weights.save(conversion.module, out, conversion.card)
    tensors = len(conversion.module.state_dict())
    note(f"{out}: {model}, {tensors} tensors")
    assumed = conversion.card.training["imported"].get("normalisation")
    if assumed:
        note(f"normalisation {assumed}; --set mean=[...] --set std=[...] override it")
    if conversion.unused:
        names = ", ".join(conversion.unused)
        note(
            f"not imported, because the network never uses them ({len(conversion.unused)} tensors, "
            f"{conversion.unused_parameters:,} parameters): {names}"
        )
