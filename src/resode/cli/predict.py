"""`resode predict`: classes and probabilities of image files."""

import json
from pathlib import Path
from typing import Annotated

import typer

from resode.cli.completion import network_names
from resode.cli.options import (
    DeviceOption,
    FreezeOption,
    JsonOption,
    OnBadImageOption,
    PluginOption,
    PrecisionOption,
)
from resode.plugins import load_plugins


def predict(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A run, a checkpoint, a .safetensors file, or the name of pretrained weights.",
            autocompletion=network_names,
        ),
    ],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")
    ],
    top: Annotated[int, typer.Option("--top", metavar="K", min=1, help="Classes to show per image.")] = 3,
    on_bad_image: OnBadImageOption = None,
    precision: PrecisionOption = "fp32",
    compile_: FreezeOption = "off",
    device: DeviceOption = None,
    json_: JsonOption = False,
    plugin: PluginOption = None,
) -> None:
    """Classify image files with the preprocessing stored with the weights.

    An image is turned upright (EXIF), scaled and centre-cropped to the network's size. A file that cannot
    be read is an error, and the others are still classified; with --on-bad-image skip it is listed. What is
    no image in a folder is skipped.

    Examples:

        resode predict runs/r20 cat.jpg dog.png

        resode predict akamaster20.safetensors photos/ --json

    \f
    """
    load_plugins(plugin)
    from resode import inference
    from resode.cli.console import note, say

    found = inference.predict(
        path, images, top=top, precision=precision, freeze=compile_ == "on", device=device or "auto"
    )
    if json_:
        print(json.dumps(found.records(), ensure_ascii=False))
    else:
        for each in found.images:
            named = ", ".join(f"{name} {100 * p:.1f} %" for name, p in each.probabilities.items())
            say(f"{each.record()['file']}: {named}")
    for line in found.notes:
        note(line)
    if found.skipped:
        number = len(found.skipped)
        what = "1 file that is no image" if number == 1 else f"{number:,} files that are no images"
        note(f"skipped {what}{', the first' if number > 1 else ''}: {found.skipped[0]}")
    if on_bad_image == "skip":
        for line in (line for error in found.errors for line in error.messages):
            note(f"skipped: {line}")
    elif found.errors:
        worst = max(found.errors, key=lambda error: error.exit_code)
        raise type(worst)(*(line for error in found.errors for line in error.messages))
