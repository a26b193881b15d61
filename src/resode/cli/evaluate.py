"""`resode evaluate`: score trained weights on labelled images."""

import json
from typing import Annotated, Literal

import typer

from resode.cli import robustness as column
from resode.cli.completion import network_names
from resode.cli.options import (
    ClassesOption,
    DataOption,
    DeviceOption,
    FreezeOption,
    JsonOption,
    OnBadImageOption,
    PluginOption,
    PrecisionOption,
)
from resode.cli.robustness import CorruptionsOption, ImagesOption, RobustnessOption
from resode.plugins import load_plugins


def evaluate(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A run, a checkpoint, a .safetensors file, or the name of pretrained weights.",
            autocompletion=network_names,
        ),
    ],
    data: DataOption = None,
    on_bad_image: OnBadImageOption = None,
    classes: ClassesOption = "by-name",
    split: Annotated[Literal["test", "train"], typer.Option("--split", help="Which images.")] = "test",
    precision: PrecisionOption = "fp32",
    compile_: FreezeOption = "off",
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", metavar="N", min=1, help="Images at a time (default: 500; attacks: 100)."
        ),
    ] = None,
    device: DeviceOption = None,
    robustness: RobustnessOption = False,
    corruptions: CorruptionsOption = None,
    number: ImagesOption = None,
    json_: JsonOption = False,
    plugin: PluginOption = None,
) -> None:
    """Evaluate weights on the test images, in full precision by default.

    Normalisation and data are those stored with the weights; --data names other data. --robustness adds the
    errors on rotated and scaled images and under two attacks, FGSM and PGD, which change every pixel by at
    most 1, 2, 4 or 8 grey levels.

    Examples:

        resode evaluate runs/r20

        resode evaluate akamaster20.safetensors --data cifar10 --json

        resode evaluate runs/r20 --data cifar10 --split train --precision bf16 --compile on

        resode evaluate runs/r20 --data cifar10 --classes by-position

        resode evaluate runs/r20 --robustness --images 1000

        resode evaluate runs/r20 --corruptions data/CIFAR-10-C

    \f
    """
    load_plugins(plugin)
    column.check(robustness, corruptions, number, precision, compile_)
    from resode import inference
    from resode.cli.console import note, say
    from resode.data.matching import read_how

    how = read_how(classes)
    arrays, matching = (None, how) if corruptions is None else column.opened(corruptions, path, how)
    found = inference.evaluate(
        path,
        data=data,
        split=split,
        classes=how,
        on_bad_image=on_bad_image,
        precision=precision,
        freeze=compile_ == "on",
        batch_size=batch_size or 500,
        device=device or "auto",
    )
    for line in (*found.notes, *(f"skipped: {line}" for line in found.skipped)):
        note(line)
    scores, record = found.scores, found.record()
    if not json_:
        say(
            f"{found.model} on {found.data} ({found.split}, {scores.samples:,} images, {scores.precision}): "
            f"top-1 error {scores.top1_error:.2f} %, accuracy {scores.top1_accuracy:.2f} %, "
            f"loss {scores.loss:.4f}"
        )
    if robustness:
        record["robustness"] = column.changed(found, number, batch_size or 100, show=not json_)
    if arrays is not None:
        record["corruptions"] = column.corrupted(
            found, arrays, number, precision, batch_size or 500, show=not json_
        ) | {"classes": matching}
    if json_:
        print(json.dumps(record, ensure_ascii=False))
