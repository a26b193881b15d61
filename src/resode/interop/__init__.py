"""Interop: loaders of other people's checkpoints and modules; export to ONNX and torch.export.

conversion = convert("akamaster", "resnet20.th", model="he_resnet20")
weights.save(conversion.module, "resnet20.safetensors", conversion.card)
export(conversion.module, "resnet20.onnx", card=conversion.card)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resode import atomic
from resode.data.pinned import PINNED_DATASETS
from resode.errors import InputError, nearest
from resode.interop import akamaster, fattorib, kuangliu, toolbox
from resode.interop.checkpoints import read
from resode.interop.dynamicblocks import from_dynamicblocks
from resode.interop.exporting import Exported, export
from resode.interop.formats import Format, State, Translation
from resode.interop.twist import from_twist_block
from resode.models import models
from resode.weights import ASSUMED, Card, Preprocessing, Specification, fill

__all__ = [
    "CIFAR10",
    "FORMATS",
    "Conversion",
    "Exported",
    "Format",
    "convert",
    "export",
    "from_dynamicblocks",
    "from_twist_block",
]

FORMATS: dict[str, Format] = {module.FORMAT.name: module.FORMAT for module in (akamaster, fattorib, kuangliu)}

CIFAR10 = next(pinned.classes for pinned in PINNED_DATASETS if pinned.name == "cifar10")


@dataclass(frozen=True)
class Conversion:
    """A foreign checkpoint as a registered model.

    Args:
        module: in evaluation mode, with the dtype of the file.
        card: specification, preprocessing, and name and digest of the file.
        unused: the foreign names of tensors that the network never uses; they are not imported.
        unused_parameters: the number of parameters in these (running statistics do not count).
    """

    module: nn.Module
    card: Card
    unused: tuple[str, ...]
    unused_parameters: int


def convert(
    format: str, path: str | PathLike[str], *, model: str, options: Mapping[str, Any] | None = None
) -> Conversion:
    """Read a foreign checkpoint as a registered model.

    Args:
        format: a name in `FORMATS`, or dynamicblocks.
        path: the checkpoint.
        model: the registered name of the network (`resode list models`).
        options: for dynamicblocks only: scheme, states, controls and layer, which the tensors do not tell;
            mean and std.

    Raises:
        InputError: an unknown format or model, a missing file, or a file that does not hold this model.
        IntegrityError: a corrupt or hostile file; nothing in it is executed.
    """
    names = (*FORMATS, toolbox.MODEL)
    if format not in names:
        raise InputError(f"unknown format '{format}'{nearest(format, names)} ({', '.join(names)})")
    models.entry(model)
    if format == toolbox.MODEL:
        return _convert_toolbox(path, model, options or {})
    if options:
        raise InputError(f"--set {next(iter(options))}: {format} takes no options")
    chosen, state = FORMATS[format], read(path)
    translation = _translate(chosen, state, path)
    if translation.model != model:
        raise InputError(
            f"{path}: looks like {translation.model}, not {model}; give --model {translation.model}"
        )
    biases = translation.tensors.get("fc.bias", torch.empty(len(CIFAR10)))
    specification = Specification(model, {"classes": biases.numel(), **translation.options})
    module = _rebuild(specification, translation.tensors, f"{path}: is no {model} of {format}")
    preprocessing = _preprocessing(chosen.mean, chosen.std, 3, biases.numel(), biases.dtype)
    return Conversion(
        module=module,
        card=Card(specification, preprocessing, _origin(_source(format, path))),
        unused=translation.unused,
        unused_parameters=sum(
            state[n].numel() for n in translation.unused if n.endswith((".weight", ".bias"))
        ),
    )


def _convert_toolbox(path: str | PathLike[str], model: str, given: Mapping[str, Any]) -> Conversion:
    """Read a network of the DynamicBlocks toolbox."""
    if model != toolbox.MODEL:
        raise InputError(f"{path}: is a DynamicBlocks network, not {model}; give --model {toolbox.MODEL}")
    state, stored = toolbox.read_with_options(path)
    given = {**stored, **given}
    options = toolbox.options_of(state, given, path)
    mean, std, assumed = toolbox.normalisation(given, options["in_channels"])
    try:
        module = from_dynamicblocks(state, **options)
    except InputError as error:
        raise InputError(*(f"{path}: {message}" for message in error.messages)) from None
    channels, classes = options["in_channels"], options["classes"]
    preprocessing = _preprocessing(mean, std, channels, classes, next(module.parameters()).dtype)
    source = _source(toolbox.MODEL, path) | ({"normalisation": toolbox.ASSUMED} if assumed else {})
    specification = Specification(model, toolbox.model_options(options))
    card = Card(specification, preprocessing, _origin(source))
    return Conversion(module, card, unused=(), unused_parameters=0)


def _preprocessing(
    mean: tuple[float, ...], std: tuple[float, ...], channels: int, classes: int, dtype: torch.dtype
) -> Preprocessing:
    """Preprocessing of 32x32 images, with the names of CIFAR-10 for ten classes and numbers for others.

    A checkpoint of another program has no names: these are assumed, which its card says.
    """
    names = CIFAR10 if classes == len(CIFAR10) else tuple(map(str, range(classes)))
    return Preprocessing(mean, std, (32, 32), channels, names, dtype)


def _origin(source: Mapping[str, str]) -> dict[str, Any]:
    """The training record of an imported checkpoint."""
    return {"data": "cifar10", "imported": source, "classes": ASSUMED}


def _source(format: str, path: str | PathLike[str]) -> dict[str, str]:
    """Format, name and digest of a file, for its card."""
    return {"format": format, "file": Path(path).name, "sha256": atomic.sha256(Path(path))}


def _translate(chosen: Format, state: State, path: str | PathLike[str]) -> Translation:
    """Translate a state; the error for a wrong format names the format that fits."""
    try:
        return _checked(chosen, state)
    except InputError as error:
        fitting = [other.name for other in FORMATS.values() if other is not chosen and _fits(other, state)]
        hint = f"; it looks like {fitting[0]}" if fitting else ""
        raise InputError(f"{path}: is not of the format {chosen.name}: {error}{hint}") from None


def _checked(format: Format, state: State) -> Translation:
    translation = format.translate(state)
    models.entry(translation.model)
    return translation


def _fits(format: Format, state: State) -> bool:
    try:
        _checked(format, state)
    except InputError:
        return False
    return True


def _rebuild(specification: Specification, tensors: State, mistake: str) -> nn.Module:
    """Build the module with these tensors; batch counters of norms, which old files lack, start at zero."""
    with torch.random.fork_rng(devices=[]):
        module = specification.build().eval()
    counters = {n: t for n, t in module.state_dict().items() if n.endswith(".num_batches_tracked")}
    try:
        fill(module, {**counters, **tensors})
    except InputError as error:
        raise InputError(f"{mistake}: {error}") from None
    return module
