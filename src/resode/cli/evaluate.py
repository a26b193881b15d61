"""`resode evaluate`: score weights on labelled images."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resode.cli.options import (
    DataOption,
    DeviceOption,
    JsonOption,
    OnBadImageOption,
    PluginOption,
    PrecisionOption,
    choice,
    load_plugins,
)
from resode.errors import InputError

if TYPE_CHECKING:
    from resode.data import Images
    from resode.training import Scores
    from resode.weights import Loaded, Preprocessing


def evaluate(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A run, a checkpoint or a .safetensors file.")],
    data: DataOption = None,
    on_bad_image: OnBadImageOption = None,
    split: Annotated[str, typer.Option("--split", metavar="S", help="test or train.")] = "test",
    precision: PrecisionOption = None,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", min=1)] = 500,
    device: DeviceOption = None,
    json_: JsonOption = False,
    plugin: PluginOption = None,
) -> None:
    """Evaluate weights on the test images (full precision unless asked otherwise).

    The normalisation is the one stored with the weights; the data is the one they were trained on unless
    --data names another.

    Examples:

        resode evaluate runs/r20

        resode evaluate akamaster20.safetensors --data cifar10 --json

    \f
    """
    load_plugins(plugin)
    choice("--precision", precision, ("fp32", "bf16"))
    choice("--split", split, ("test", "train"))
    from resode import weights
    from resode.cli.console import err, out
    from resode.training.runs import weights_file

    file = weights_file(path)
    card = weights.read_card(file)
    source = data or card.training.get("data")
    if source is None:
        raise InputError(f"{path}: does not say what it was trained on; give --data")
    source, bad = str(source), choice("--on-bad-image", on_bad_image, ("error", "skip")) or "error"
    module = weights.load(file)
    images, skipped = _images(source, split, bad, card.preprocessing)
    scores = _score(module, images, precision or "fp32", batch_size, device)
    name = card.specification.name if card.specification else type(module).__name__
    record: dict[str, Any] = scores.record()
    record |= {"data": source, "split": split, "model": name, "path": path, "skipped": len(skipped)}
    for line in skipped:
        err.print(f"skipped: {line}", highlight=False, markup=False, soft_wrap=True)
    if json_:
        print(json.dumps(record, ensure_ascii=False))
        return
    out.print(
        f"{name} on {source} ({split}, {scores.samples:,} images, {scores.precision}): "
        f"top-1 error {scores.top1_error:.2f} %, accuracy {scores.top1_accuracy:.2f} %, "
        f"loss {scores.loss:.4f}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _images(
    source: str, split: str, on_bad_image: Any, preprocessing: "Preprocessing"
) -> "tuple[Images, tuple[str, ...]]":
    """The images of a split at the network's size, labelled in the network's order of classes."""
    import numpy as np

    from resode.data import Images, load

    height, width = preprocessing.size
    dataset = load(source, image_size=height if height == width else None, on_bad_image=on_bad_image)
    images = dataset.train if split == "train" else dataset.test
    if images is None:
        raise InputError(f"{source}: has no test images; evaluate on --split train, or give other --data")
    channels = images.pixels.shape[3]
    if channels != preprocessing.channels:
        raise InputError(
            f"{source}: its images have {channels} channels, the network takes {preprocessing.channels}"
        )
    if len(dataset.classes) != len(preprocessing.classes):
        raise InputError(
            f"{source}: has {len(dataset.classes)} classes, the network has {len(preprocessing.classes)}"
        )
    if set(dataset.classes) == set(preprocessing.classes) and dataset.classes != preprocessing.classes:
        place = np.array([preprocessing.classes.index(name) for name in dataset.classes])
        images = Images.of(images.pixels, place[images.labels])
    return images, dataset.skipped


def _score(
    module: "Loaded", images: "Images", precision: str, batch_size: int, device_name: str | None
) -> "Scores":
    """Score the network on labelled images, each once."""
    import numpy as np

    from resode import data, training
    from resode.training.precision import choose_device, place

    device = choose_device(device_name or "auto")
    loader = data.Loader(
        images,
        np.arange(len(images)),
        batch_size=batch_size,
        mean=module.preprocessing.mean,
        std=module.preprocessing.std,
        device=device,
        dtype=next(module.parameters()).dtype,
    )
    return training.evaluate(place(module, device), loader, precision=precision)
