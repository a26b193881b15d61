"""Files of the DynamicBlocks toolbox: tensors, and the options of the network they belong to.

Widths, classes, channels, the norm and the number of control nodes follow from shapes and names of the
tensors, and so does the scheme where state layers are stored (rk1). The two time grids do not: the user gives
them, or the metadata of a safetensors file whose tensors are called `state.*`. Nor does the order of a double
layer: it counts as DoubleLayer unless `layer` says preact_double. The toolbox stores no normalisation either.
The default is that with which it trains on CIFAR (`getRunDefaults`), mean 0.5 and standard deviation 1,
recorded as assumed; its STL-10 networks take that of ImageNet.
"""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from resode.errors import InputError, IntegrityError, nearest
from resode.grids import TimeGrid
from resode.interop.checkpoints import read
from resode.interop.dynamicblocks import SCHEMES, steps_of
from resode.interop.formats import State, count

MODEL = "dynamicblocks"
GIVEN = ("scheme", "states", "controls")
STORED = (*GIVEN, "layer")
OPTIONS = (*STORED, "mean", "std")
MEAN, STD = (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)
ASSUMED = "assumed: the toolbox's own for CIFAR, mean 0.5 and std 1"
PREFIX = "state."


def read_with_options(path: str | PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors of a file by the toolbox's names, and the options in its metadata.

    Raises:
        InputError: the file is missing, or holds no tensors by name.
        IntegrityError: the file is corrupt or hostile; nothing in it is executed.
    """
    if Path(path).suffix != ".safetensors":
        return read(path), {}
    try:
        with safe_open(path, framework="pt") as file:
            stored = {k: json.loads(text) for k, text in (file.metadata() or {}).items() if k in STORED}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (SafetensorError, ValueError, OSError) as error:
        raise IntegrityError(f"{path}: is not a complete safetensors file ({error})") from None
    own = {name.removeprefix(PREFIX): t for name, t in state.items() if name.startswith(PREFIX)}
    return own or state, stored


def options_of(state: State, given: Mapping[str, Any], path: str | PathLike[str]) -> dict[str, Any]:
    """The options of `from_dynamicblocks`, from those given and from the tensors.

    Raises:
        InputError: missing or unknown options, all listed; grids that do not fit the tensors.
    """
    needed = ("open.conv.weight", "linear.weight")
    if any(name not in state for name in needed) or not count(state, r"dynamicBlocks\.(\d+)\."):
        raise InputError(f"{path}: is no network of DynamicBlocks (open.*, dynamicBlocks.*, linear.*)")
    found = steps_of(state)
    given = ({} if found is None else {"scheme": found[0]}) | dict(given)
    examples = {"scheme": "rk4", "states": "[0,1,2,3,4]", "controls": "[0,1,2,3,4]"}
    mistakes = [f"{path}: does not store its {key}: add --set {key}={examples[key]}" for key in GIVEN
                if key not in given]  # fmt: skip
    mistakes += [f"--set {key}: {MODEL} has no such option{nearest(key, OPTIONS)} ({', '.join(OPTIONS)})"
                 for key in given if key not in OPTIONS]  # fmt: skip
    scheme = given.get("scheme", "rk4")
    if scheme not in SCHEMES:
        mistakes.append(f"--set scheme={scheme}: choose one of {', '.join(SCHEMES)}")
    if mistakes:
        raise InputError(*mistakes)
    controls, states = TimeGrid.of(given["controls"]), TimeGrid.of(given["states"])
    nodes = count(state, r"dynamicBlocks\.0\.controlLayers\.(\d+)\.")
    if nodes != len(controls.nodes):
        raise InputError(f"{path}: has {nodes} control nodes a block, {controls} has {len(controls.nodes)}")
    double = any(".controlLayers." in name and ".conv1." in name for name in state)
    layers = ("double", "preact_double") if double else ("parabolic",)
    layer = given.get("layer", layers[0])
    if layer not in layers:
        raise InputError(f"--set layer={layer}: {path} has layers of the kind {' or '.join(layers)}")
    of_layers = [name for name in state if ".controlLayers." in name]
    blocks = range(count(state, r"dynamicBlocks\.(\d+)\."))
    widths = [_width(state, block) for block in blocks]
    classes, last = state["linear.weight"].shape
    return {
        "scheme": scheme,
        "layer": layer,
        "states": states,
        "controls": controls,
        "widths": [*widths, last],
        "in_channels": state["open.conv.weight"].shape[1],
        "classes": classes,
        "norm": _norm(of_layers),
    }


def model_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options for `resode.create("dynamicblocks", ...)` that build the network, as plain data."""
    plain: dict[str, Any] = {
        **options,
        "scheme": SCHEMES[options["scheme"]],
        "states": options["states"].to_data(),
        "controls": options["controls"].to_data(),
        "keep_unused": True,
    }
    if plain["norm"] == "tv":
        del plain["norm"]  # the default of the model
    return plain


def normalisation(
    given: Mapping[str, Any], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Mean, standard deviation, and whether they are assumed.

    Raises:
        InputError: one without the other, or neither for images that do not have three channels.
    """
    if ("mean" in given) != ("std" in given):
        raise InputError("--set mean and --set std: give both, one value per channel, or neither")
    if "mean" in given:
        values = []
        for key in ("mean", "std"):
            try:
                values.append(tuple(float(x) for x in given[key]))
            except (TypeError, ValueError):
                raise InputError(
                    f"--set {key}={given[key]}: give a list with one value per channel"
                ) from None
        return values[0], values[1], False
    if channels != len(MEAN):
        raise InputError(f"images of {channels} channels: add --set mean=[...] and --set std=[...]")
    return MEAN, STD, True


def _norm(names: Sequence[str]) -> str:
    """The norm, from the names of the tensors of layers."""
    if any(name.endswith(".running_mean") for name in names):
        return "batch"
    return "tv" if any(".normLayer" in name for name in names) else "none"


def _width(state: State, block: int) -> int:
    """The width of a block: the input channels of its first layer."""
    weight = next(
        tensor
        for name, tensor in state.items()
        if name.startswith(f"dynamicBlocks.{block}.controlLayers.0.") and tensor.ndim == 4
    )
    return weight.shape[1]
