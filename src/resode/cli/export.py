"""`resode export`: a trained network as an ONNX file, a program of torch.export, or a weights file."""

from pathlib import Path
from typing import Annotated

import typer

from resode.cli.options import PluginOption, load_plugins
from resode.errors import InputError


def export(
    path: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run, checkpoint, .safetensors file or shipped name."),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The .onnx, .pt2 or .safetensors file to write.")
    ],
    format_: Annotated[
        str | None,
        typer.Option("--format", metavar="F", help="onnx, pt2 or safetensors; left out, as --out ends."),
    ] = None,
    input_: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="KIND",
            help="What the graph takes: normalised images, unit ([0, 1]) or uint8 ones.",
        ),
    ] = "normalised",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    plugin: PluginOption = None,
) -> None:
    """Write a network for other programs, and check that they get the same logits.

    The graph takes any number of images, its integrators are unrolled, and its normalisations are as in
    evaluation. By default it takes what the network does, (x - mean) / std of x in [0, 1]; --input unit and
    --input uint8 begin with that, too. Mean, std, size, classes and the whole card lie in the metadata of
    ONNX files and in the extra files of pt2.

    The file is read again (an ONNX file by ONNX Runtime) and compared with the network on batches of 1, 2
    and 7 random images: if a logit differs by more than 1e-5 of the largest, no file is left. ONNX needs
    `pip install 'resode[export]'`; adaptive solvers go into .safetensors only, Fourier transforms (imex) not
    into ONNX.

    Examples:

        resode export runs/r20 --out r20.onnx

        resode export runs/r20 --format onnx --input uint8 --out pixels.onnx

        resode export runs/r20 --out r20.pt2

        resode export runs/r20/checkpoints/3910 --out r20.safetensors

    \f
    """
    load_plugins(plugin)
    from resode import weights
    from resode.cli.console import note, say
    from resode.cli.regrid import refuse_place
    from resode.interop import export as exported_to
    from resode.interop.exporting import format_of
    from resode.training.optim import optimizers
    from resode.training.records.locations import weights_file

    format_ = format_of(out, format_)
    if format_ == "safetensors":
        refuse_place(out, force)
    elif out.exists() and not force:
        raise InputError(f"--out {out}: exists already; choose another name or add --force")
    file = weights_file(path)
    if out.exists() and out.samefile(file):
        raise InputError(f"--out {out}: is the file that is read; choose another name")
    loaded = weights.load(file)
    if loaded.card.training.get("averaged") is False:
        note(
            f"{path}: these are the weights of the last step; the averaged ones come with the end of the run"
        )
    made = exported_to(loaded, out, format=format_, takes=input_)
    if format_ == "safetensors":
        optimizers.state_file(out).unlink(missing_ok=True)
    known = loaded.preprocessing
    shape = ", ".join(map(str, ("N", known.channels, *known.size)))
    assert loaded.card.specification is not None  # it was loaded by it
    opset = f" (opset {made.opset})" if made.opset else ""
    say(f"{out}: {loaded.card.specification.name}, {made.format}{opset}, {made.size:,} bytes")
    say(f"takes {input_} images ({shape})")
    say(f"parity {made.parity:.1e}: the largest difference of a logit, relative to the largest logit")
