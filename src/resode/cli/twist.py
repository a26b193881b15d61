"""`resode twist`: the convolutions of a trained network, or of a new one, twisted."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resode.cli.models import names_a_model, new_model
from resode.cli.options import PluginOption, load_plugins
from resode.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from resode.weights import Card


def twist(
    path: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="A run, a checkpoint, a .safetensors file, a model.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The .safetensors file to write.")],
    stages: Annotated[
        str | None, typer.Option("--stages", metavar="LIST", help="Which stages, like 1,2; all if left out.")
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
    degree: Annotated[int, typer.Option("--degree", help="Of the polynomials in the coordinates.")] = 1,
    coordinates: Annotated[
        str, typer.Option("--coordinates", help="centred, per-axis, or published (not centred).")
    ] = "centred",
    form: Annotated[
        str,
        typer.Option("--form", help="separate (bit for bit at first), stacked, fused, generated, or auto."),
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    plugin: PluginOption = None,
) -> None:
    """Twist convolutions: K u becomes K u + X (Wx u) + Y (Wy u), which can rotate and scale an image.

    X and Y are the coordinates of a pixel; Wx and Wy are zero at first, so that the network computes what it
    did. Left out, --stages and --where mean every 3x3 convolution. Of a run with a checkpoint the
    optimizer's state comes along, in FILE.optimizer.safetensors: train on with `--init FILE --set
    init.optimizer=true`.

    Examples:

        resode twist runs/r20 --stages 1,2 --out twisted.safetensors

        resode train he2016/resnet20 --init twisted.safetensors --out runs/r20-twisted

        resode twist he_resnet20 --tie free --where 'layer1.*.conv2' --out new.safetensors

    \f
    """
    load_plugins(plugin)
    from resode.cli.regrid import refuse_place
    from resode.operators.twist import check_twist

    check_twist(tie, degree, coordinates, form)
    chosen: list[str | int] = [part.strip() for part in (stages or "").split(",") if part.strip()]
    if any(not str(part).isdecimal() for part in chosen) or (stages is not None and not chosen):
        raise InputError(f"--stages {stages}: numbers with commas between, like 1,2")
    chosen += where or []
    refuse_place(out, force)
    from resode import weights
    from resode.cli.console import note, say
    from resode.models import name_and_options
    from resode.models import twist as twisted_copy
    from resode.models.twisting import explain
    from resode.training.optim import optimizers
    from resode.training.setup.changes import with_zeros

    model, card, state = _read(path, out)
    options = {"tie": tie, "degree": degree, "coordinates": coordinates, "form": form}
    made = twisted_copy(model, chosen or None, **options)
    described = name_and_options(made)
    if described is None:
        raise InputError(f"{path}: holds a module that is no registered model; twist it by resode.twist")
    how = f"from {path}, tie {tie}, degree {degree}"
    weights.save(made, out, card.derived(weights.Specification(*described), "twisted", how))
    beside = optimizers.state_file(out)
    beside.unlink(missing_ok=True)
    if state:
        optimizers.write_state(out, optimizers.carry_state(state, with_zeros(made)))
    for line in explain(model, made, (card.preprocessing.channels, *card.preprocessing.size)):
        say(line)
    note(f"{out}: written" + (f", with {beside.name}" if state else ", without an optimizer's state"))


def _read(path: str, out: Path) -> "tuple[nn.Module, Card, dict[str, Tensor]]":
    """The network, its card, and the state of its optimizer where there is one."""
    from resode import weights
    from resode.models import name_and_options
    from resode.training.records.run import source_of

    if names_a_model(path):
        module, (channels, height, width) = new_model(path)
        names = tuple(map(str, range(10)))
        preprocessing = weights.Preprocessing(
            (0.5,) * channels, (0.25,) * channels, (height, width), channels, names
        )
        made = name_and_options(module)
        assert made is not None
        return module, weights.Card(weights.Specification(*made), preprocessing, {"new": True}), {}
    source = source_of(path)
    if out.exists() and Path(path).exists() and out.samefile(source.weights):
        raise InputError(f"--out {out}: is the file that is read; choose another name")
    loaded = weights.load(source.weights)
    return loaded, loaded.card, dict(source.optimizer)
