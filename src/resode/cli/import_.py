"""`resode import`: other people's checkpoints into ours."""

from pathlib import Path
from typing import Annotated

import typer

from resode.cli.options import choice
from resode.errors import InputError


def import_(
    format_: Annotated[
        str, typer.Argument(metavar="FORMAT", help="akamaster, fattorib, kuangliu or dynamicblocks.")
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The published checkpoint (.th, .pth, .pt).")],
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="As `resode list models` prints it.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The .safetensors file to write.")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="dynamicblocks: scheme (rk1, rk4), states, controls; mean, std. Repeatable.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Convert a published checkpoint; nothing in it is executed.

    Its normalisation is stored with the weights, so that evaluate and predict apply it by themselves. A file
    of DynamicBlocks tells neither its scheme nor its time grids: --set gives them; its normalisation is taken
    to be that of the CIFAR-10 training images, unless --set mean=... and --set std=... say otherwise.

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

    choice("format", format_, (*interop.FORMATS, "dynamicblocks"))
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
        note(f"normalisation {assumed}; --set mean=[...] --set std=[...] give another")
    if conversion.unused:
        names = ", ".join(conversion.unused)
        note(
            f"not carried over, because the network never uses them ({len(conversion.unused)} tensors, "
            f"{conversion.unused_parameters:,} parameters): {names}"
        )
