"""`resode predict`: classes and probabilities of image files."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resode.cli.options import (
    DeviceOption,
    FreezeOption,
    JsonOption,
    PluginOption,
    PrecisionOption,
    choice,
    load_plugins,
)
from resode.errors import InputError, IntegrityError, ResodeError

if TYPE_CHECKING:
    import torch

    from resode.weights import Loaded, Preprocessing

_BATCH = 256


def predict(
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", help="A run, checkpoint, .safetensors file or shipped name."),
    ],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")
    ],
    top: Annotated[int, typer.Option("--top", metavar="K", min=1, help="Classes to show an image.")] = 3,
    precision: PrecisionOption = None,
    compile_: FreezeOption = None,
    device: DeviceOption = None,
    json_: JsonOption = False,
    plugin: PluginOption = None,
) -> None:
    """Classify image files with the preprocessing stored beside the weights.

    An image is turned upright (EXIF), scaled and centre-cropped to the network's size. One that cannot
    be read is named, and the others are still classified.

    Examples:

        resode predict runs/r20 cat.jpg dog.png

        resode predict akamaster20.safetensors photos/ --json

    \f
    """
    load_plugins(plugin)
    choice("--compile", compile_, ("on", "off"))
    choice("--precision", precision, ("fp32", "bf16"))
    from resode import weights
    from resode.training.process.device import choose_device
    from resode.training.records.locations import weights_file

    files, missing = _files(images)
    module = weights.load(weights_file(path))
    module.to(choose_device(device or "auto"))
    pixels, readable, mistakes = _read(files, module.preprocessing)
    rows = _classify(module, pixels, readable, top, precision == "bf16", compile_ == "on")
    _show(rows, json_)
    if mistakes := [*missing, *mistakes]:
        worst = max(mistakes, key=lambda error: error.exit_code)
        raise type(worst)(*(line for error in mistakes for line in error.messages))


def _files(images: list[Path]) -> tuple[list[Path], list[ResodeError]]:
    """Files as given; a folder stands for the files in it, by name. Then what is not there."""
    files: list[Path] = []
    missing: list[ResodeError] = []
    for image in images:
        if image.is_dir():
            found = sorted(p for p in image.rglob("*") if p.is_file() and not p.name.startswith("."))
            if not found:
                missing.append(InputError(f"{image}: holds no files"))
            files.extend(found)
        elif image.is_file():
            files.append(image)
        else:
            missing.append(InputError(f"{image}: no such file"))
    return files, missing


def _read(
    files: list[Path], preprocessing: "Preprocessing"
) -> "tuple[list[torch.Tensor], list[Path], list[ResodeError]]":
    import torch

    from resode.data import decode, resize_and_crop

    pixels, readable, mistakes = [], [], []
    for file in files:
        try:
            image = resize_and_crop(
                decode(file, name=str(file)), size=preprocessing.size, channels=preprocessing.channels
            )
        except ResodeError as error:
            mistakes.append(error)
            continue
        pixels.append(torch.from_numpy(image).permute(2, 0, 1))
        readable.append(file)
    return pixels, readable, mistakes


def _classify(
    module: "Loaded",
    pixels: "list[torch.Tensor]",
    files: list[Path],
    top: int,
    half: bool = False,
    freeze: bool = False,
) -> list[dict[str, Any]]:
    import torch

    from resode.inference import Frozen

    classes = module.preprocessing.classes
    network = Frozen(module) if freeze else module
    device = next(module.parameters()).device
    rows: list[dict[str, Any]] = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
        for start in range(0, len(pixels), _BATCH):
            batch = torch.stack(pixels[start : start + _BATCH]).to(device)
            probabilities = network(module.preprocessing(batch)).float().softmax(1).cpu()
            if not probabilities.isfinite().all():
                raise IntegrityError("the network's outputs are not finite: its weights are damaged")
            best = probabilities.topk(min(top, probabilities.shape[1]))
            for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                named = {classes[i]: round(v, 6) for i, v in zip(indices, values, strict=True)}
                first = next(iter(named))
                rows.append(
                    {
                        "file": str(files[len(rows)]),
                        "class": first,
                        "probability": named[first],
                        "probabilities": named,
                    }
                )
    return rows


def _show(rows: list[dict[str, Any]], json_: bool) -> None:
    if json_:
        print(json.dumps(rows, ensure_ascii=False))
        return
    from resode.cli.console import say

    for row in rows:
        named = ", ".join(f"{name} {100 * p:.1f} %" for name, p in row["probabilities"].items())
        say(f"{row['file']}: {named}")
