"""`resode evaluate`: score weights on labelled images."""

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from resode.cli import robustness as column
from resode.cli.options import (
    DataOption,
    DeviceOption,
    FreezeOption,
    JsonOption,
    OnBadImageOption,
    PluginOption,
    PrecisionOption,
    choice,
    load_plugins,
)
from resode.cli.robustness import CorruptionsOption, ImagesOption, RobustnessOption
from resode.errors import InputError, IntegrityError

if TYPE_CHECKING:
    from torch import nn

    from resode.data import Images
    from resode.training import Scores
    from resode.weights import Loaded, Preprocessing


def evaluate(
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", help="A run, checkpoint, .safetensors file or shipped name."),
    ],
    data: DataOption = None,
    on_bad_image: OnBadImageOption = None,
    split: Annotated[str, typer.Option("--split", metavar="S", help="test or train.")] = "test",
    precision: PrecisionOption = None,
    compile_: FreezeOption = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", min=1, help="Default 500, of attacks 100.")
    ] = None,
    device: DeviceOption = None,
    robustness: RobustnessOption = False,
    corruptions: CorruptionsOption = None,
    number: ImagesOption = None,
    json_: JsonOption = False,
    plugin: PluginOption = None,
) -> None:
    """Evaluate weights on the test images (full precision unless asked otherwise).

    The normalisation is the one stored with the weights; the data is the one they were trained on unless
    --data names another. --robustness tells the errors on rotated and scaled images and under two attacks,
    FGSM and PGD, which change every pixel by at most 1, 2, 4 or 8 grey levels.

    Examples:

        resode evaluate runs/r20

        resode evaluate akamaster20.safetensors --data cifar10 --json

        resode evaluate runs/r20 --data cifar10 --split train --precision bf16 --compile on

        resode evaluate runs/r20 --robustness --images 1000

        resode evaluate runs/r20 --corruptions data/CIFAR-10-C

    \f
    """
    load_plugins(plugin)
    choice("--compile", compile_, ("on", "off"))
    choice("--precision", precision, ("fp32", "bf16"))
    choice("--split", split, ("test", "train"))
    column.check(robustness, corruptions, number, precision, compile_)
    from resode import weights
    from resode.cli.console import note, say
    from resode.inference import Frozen
    from resode.training.process.device import choose_device, place
    from resode.training.records.locations import weights_file

    file = weights_file(path)
    card = weights.read_card(file)
    source = data or card.training.get("data")
    if source is None:
        raise InputError(f"{path}: does not say what it was trained on; give --data")
    source, bad = str(source), choice("--on-bad-image", on_bad_image, ("error", "skip")) or "error"
    module = weights.load(file)
    corrupted = column.opened(corruptions, module.preprocessing) if corruptions is not None else None
    images, skipped = _images(source, split, bad, card.preprocessing)
    place(module, choose_device(device or "auto"))
    network = Frozen(module) if compile_ == "on" else module
    scores = _score(network, module, images, precision or "fp32", batch_size or 500)
    if not math.isfinite(scores.loss):
        raise IntegrityError(f"{path}: the loss on {source} is {scores.loss}: the weights are not finite")
    name = card.specification.name if card.specification else type(module).__name__
    record: dict[str, Any] = scores.record()
    record |= {"data": source, "split": split, "model": name, "path": path, "skipped": len(skipped)}
    if card.training.get("averaged") is False:
        note(
            f"{path}: these are the weights of the last step; the averaged ones come with the end of the run"
        )
    for line in skipped:
        note(f"skipped: {line}")
    if not json_:
        say(
            f"{name} on {source} ({split}, {scores.samples:,} images, {scores.precision}): "
            f"top-1 error {scores.top1_error:.2f} %, accuracy {scores.top1_accuracy:.2f} %, "
            f"loss {scores.loss:.4f}"
        )
    if robustness:
        record["robustness"] = column.changed(module, images, number, batch_size or 100, show=not json_)
    if corrupted is not None:
        record["corruptions"] = column.corrupted(
            network, module, corrupted, number, precision or "fp32", batch_size or 500, show=not json_
        )
    if json_:
        print(json.dumps(record, ensure_ascii=False))


def _images(
    source: str, split: str, on_bad_image: Any, preprocessing: "Preprocessing"
) -> "tuple[Images, tuple[str, ...]]":
    """The images of a split at the network's size, labelled in the network's order of classes."""
    from resode.data import Images, load

    dataset = load(source, image_size=image_size(source, preprocessing.size), on_bad_image=on_bad_image)
    images = dataset.train if split == "train" else dataset.test
    if images is None:
        raise InputError(f"{source}: has no test images; evaluate on --split train, or give other --data")
    channels = images.pixels.shape[3]
    if channels != preprocessing.channels:
        raise InputError(
            f"{source}: its images have {channels} channels, the network takes {preprocessing.channels}"
        )
    found = places(source, dataset.classes, preprocessing.classes)
    if not np.array_equal(found, np.arange(len(found))):
        images = Images.of(images.pixels, found[images.labels])
    return images, dataset.skipped


def image_size(source: str, size: tuple[int, int]) -> int | None:
    """The side to ask of a source whose images may have another size than the network's input."""
    from resode.data import sources

    shape = sources.entry(source).shape if source in sources.names() else (0, 0, 0)
    return None if shape is None or shape[1:] == size or size[0] != size[1] else size[0]


def places(source: str, found: Sequence[str], wanted: Sequence[str]) -> "np.ndarray":
    """For each class of the data its place among the network's: by name; by number where one has none."""
    from resode.cli.console import note

    if len(found) != len(wanted):
        raise InputError(f"{source}: has {len(found)} classes, the network has {len(wanted)}")
    plain = [["".join(filter(str.isalnum, name.lower())) for name in names] for names in (found, wanted)]
    numbers = [str(number) for number in range(len(wanted))]
    if numbers in plain:
        if plain[0] != plain[1]:
            note(f"{source}: one side has numbers for class names, so classes are matched by number")
        return np.arange(len(wanted))
    if sorted(plain[0]) != sorted(plain[1]):
        other = next(name for name, key in zip(found, plain[0], strict=True) if key not in plain[1])
        raise InputError(
            f"{source}: its class '{other}' is none of the network's ({', '.join(wanted[:10])}"
            f"{', ...' if len(wanted) > 10 else ''}); this network was trained on other classes"
        )
    return np.array([plain[1].index(key) for key in plain[0]])


def _score(
    network: "nn.Module", module: "Loaded", images: "Images", precision: str, batch_size: int
) -> "Scores":
    """Score a network, the module or what was made of it, on labelled images, each once."""
    from resode import data, training

    own = next(module.parameters())
    loader = data.Loader(
        images,
        np.arange(len(images)),
        batch_size=batch_size,
        mean=module.preprocessing.mean,
        std=module.preprocessing.std,
        device=own.device,
        dtype=own.dtype,
    )
    return training.evaluate(network, loader, precision=precision)
