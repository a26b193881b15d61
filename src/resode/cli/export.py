"""`resode export`: a trained network as an ONNX file, a torch.export program, or a weights file."""

from pathlib import Path
from typing import Annotated

import typer

from resode.cli.completion import network_names
from resode.cli.options import ForceOption, PluginOption, check_out
from resode.errors import InputError
from resode.plugins import load_plugins


def export(
    path: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run, a checkpoint, a .safetensors file, or the name of pretrained weights.",
            autocompletion=network_names,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The .onnx, .pt2 or .safetensors file to write.")
    ],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="F", help="onnx, pt2 or safetensors (default: the suffix of --out)."
        ),
    ] = None,
    input_: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="KIND",
            help="Input of the graph: images that are normalised, unit (in [0, 1]) or uint8.",
        ),
    ] = "normalised",
    force: ForceOption = False,
    plugin: PluginOption = None,
) -> None:
    """Export a network for other programs, and check that they compute the same logits.

    The graph takes any number of images, with integrators unrolled and norms in evaluation mode. Its input is
    that of the network, (x - mean) / std of x in [0, 1]; with --input unit or uint8 the graph normalises it.
    Mean, std, size, classes and the whole card are stored in the metadata of ONNX files and in the extra
    files of pt2.

    The file is read back (ONNX by ONNX Runtime) and compared with the network on batches of 1, 2 and 7 random
    images; if a logit differs by more than 1e-5 of the largest, the file is removed. ONNX needs `pip install
    'resode[export]'`. Adaptive solvers can be exported to .safetensors only, Fourier transforms (imex) to all
    but ONNX.

    Examples:

        resode export runs/r20 --out r20.onnx

        resode export runs/r20 --format onnx --input uint8 --out pixels.onnx

        resode export runs/r20 --out r20.pt2

        resode export runs/r20/checkpoints/3910 --out r20.safetensors

    \f
    """
    load_plugins(plugin)
    from resode.cli.console import note, say
    from resode.inference import state_notes
    from resode.interop import export as exported_to
    from resode.interop.exporting import format_of
    from resode.training.optim import optimizers
    from resode.training.records.locations import read_network, weights_file
    from resode.training.records.state import unsealed_note

    format_ = format_of(out, format_)
    if format_ == "safetensors":
        check_out(out, force)
    elif out.exists() and not force:
        raise InputError(f"--out {out}: exists already; choose another name or add --force")
    file = weights_file(path)
    if out.exists() and out.samefile(file):
        raise InputError(f"--out {out}: is the file that is read; choose another name")
    loaded = read_network(file)
    for line in filter(None, (*state_notes(path, loaded), unsealed_note(path, file, loaded.card))):
        note(line)
    made = exported_to(loaded, out, format=format_, takes=input_)
    if format_ == "safetensors":
        optimizers.state_file(out).unlink(missing_ok=True)
    known = loaded.preprocessing
    shape = ", ".join(map(str, ("N", known.channels, *known.size)))
    assert loaded.card.specification is not None  # else it could not have been loaded
    opset = f" (opset {made.opset})" if made.opset else ""
    say(f"{out}: {loaded.card.specification.name}, {made.format}{opset}, {made.size:,} bytes")
    say(f"takes {input_} images ({shape})")
    say(f"parity {made.parity:.1e}: largest difference of a logit, relative to the largest logit")
