"""`resode twist`: the convolutions of a trained network, or of a new one, twisted."""

from pathlib import Path
from typing import Annotated

import typer

from resode.cli.completion import network_or_model_names
from resode.cli.options import ForceOption, PluginOption, check_out
from resode.errors import InputError
from resode.plugins import load_plugins


def twist(
    path: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_MODEL",
            help="A run, a checkpoint, a .safetensors file, or the name of a model.",
            autocompletion=network_or_model_names,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The .safetensors file to write.")],
    stages: Annotated[
        str | None, typer.Option("--stages", metavar="LIST", help="Which stages, like 1,2 (default: all).")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where", metavar="NAME", help="A convolution or a dynamic block, or a pattern; repeatable."
        ),
    ] = None,
    tie: Annotated[
        str, typer.Option("--tie", help="How the kernels are tied: conformal, free, odd, saddle, mixed.")
    ] = "conformal",
    degree: Annotated[int, typer.Option("--degree", help="Degree of the polynomials in X and Y.")] = 1,
    coordinates: Annotated[
        str, typer.Option("--coordinates", help="centred, per-axis, or published (not centred).")
    ] = "centred",
    form: Annotated[
        str,
        typer.Option(
            "--form",
            help="How it is computed: separate (at first bit for bit the old network), stacked, fused, "
            "generated, or auto.",
        ),
    ] = "auto",
    force: ForceOption = False,
    plugin: PluginOption = None,
) -> None:
    """Twist convolutions: K u becomes K u + X (Wx u) + Y (Wy u), which can rotate and scale an image.

    X and Y are the coordinates of a pixel. Wx and Wy are zero at first, so the network computes what it did
    before. Default: every 3x3 convolution. The optimizer state of a run is carried over to
    FILE.optimizer.safetensors: continue training with `--init FILE --set init.optimizer=true`.

    Examples:

        resode twist runs/r20 --stages 1,2 --out twisted.safetensors

        resode train he2016/resnet20 --init twisted.safetensors --out runs/r20-twisted

        resode twist he_resnet20 --tie free --where 'layer1.*.conv2' --out new.safetensors

    \f
    """
    load_plugins(plugin)
    from resode.operators.twist import check_twist

    check_twist(tie, degree, coordinates, form)
    chosen: list[str | int] = [part.strip() for part in (stages or "").split(",") if part.strip()]
    if any(not str(part).isdecimal() for part in chosen) or (stages is not None and not chosen):
        raise InputError(f"--stages {stages}: numbers with commas between, like 1,2")
    chosen += where or []
    check_out(out, force)
    from resode.cli.console import note, say
    from resode.training.setup.surgery import twist_file

    options = {"tie": tie, "degree": degree, "coordinates": coordinates, "form": form}
    done = twist_file(path, out, where=chosen or None, **options)
    for line in done.changes:
        say(line)
    note(done.written(out))
