"""Trained: a network as the user gave it, with what is known of its training."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from resode import weights
from resode.errors import InputError
from resode.training.launch import Result
from resode.training.process.device import choose_device, place
from resode.training.records.locations import read_network, weights_file
from resode.training.records.run import Run
from resode.training.records.state import UNKNOWN, State, run_around, state_of, unsealed_note
from resode.weights import Preprocessing

Network = nn.Module | str | PathLike[str] | Run | Result
NETWORKS = (
    "a network (nn.Module), a run, a checkpoint, a .safetensors file, or the name of pretrained weights"
)


@dataclass(frozen=True, eq=False)
class Trained:
    """A network as the user gave it.

    Args:
        label: for messages.
        module: on its device.
        preprocessing: stored with its weights; None: unknown.
        model: its name.
        origin: the record of its training.
        is_file: whether it was read from a file.
        state: how far its training came.
        assumes_classes: whether nobody recorded the names of its classes.
        run: the run that its weights lie in, if they do.
        unsealed: a line about a file without hashes; empty for all others.
    """

    label: str
    module: nn.Module
    preprocessing: Preprocessing | None
    model: str
    origin: Mapping[str, Any]
    is_file: bool
    state: State = UNKNOWN
    assumes_classes: bool = False
    run: Run | None = None
    unsealed: str = ""

    @property
    def device(self) -> torch.device:
        """The device of its parameters."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its parameters."""
        return next((p.dtype for p in self.module.parameters()), torch.float32)

    def for_images(self, size: tuple[int, ...], channels: int, classes: tuple[str, ...]) -> Preprocessing:
        """Its preprocessing; where it has none, pixels / 255 for such images."""
        if self.preprocessing is not None:
            return replace(self.preprocessing, dtype=self.dtype)
        return Preprocessing(
            (0.0,) * channels, (1.0,) * channels, (size[0], size[1]), channels, classes, self.dtype
        )

    def check_values(self, pixels: npt.NDArray[Any], name: str) -> None:
        """Raise `InputError` for pixels in another unit than the network was trained on."""
        trained_on = self.origin.get("pixels")
        if trained_on is not None and pixels.dtype == np.uint8:
            raise InputError(
                f"{name}: have 8-bit pixels, {self.label} was trained on {trained_on}; prepare them so"
            )
        if self.preprocessing is None or trained_on is not None or pixels.dtype == np.uint8:
            return
        low, high = float(pixels.min()), float(pixels.max())
        if low < 0 or high > 1:
            raise InputError(
                f"{name}: are floats from {low:.3g} to {high:.3g}; give them in 0 to 1, not normalised "
                f"({self.label} brings its own), or as uint8"
            )


def trained_network(net: Network, device: str) -> Trained:
    """The network; of a file on the device, else where it is.

    Raises:
        InputError: no network, or one on another device than is asked for.
    """
    run = net.run if isinstance(net, Result) else None
    if isinstance(net, Result):
        net = net.module
    if isinstance(net, Run):
        net = net.path
    if isinstance(net, str | PathLike):
        file = weights_file(Path(net) if isinstance(net, PathLike) else net)
        module = read_network(file)
        unsealed = unsealed_note(str(net), file, module.card)
        place(module, choose_device(device))
        described = _described(str(net), module, is_file=True)
        return replace(described, run=run_around(file), unsealed=unsealed)
    if not isinstance(net, nn.Module):
        fix = f": {net.__name__}(...)" if isinstance(net, type) else ""
        raise InputError(f"cannot evaluate {kind_of(net)}; give {NETWORKS}{fix}")
    net = getattr(net, "_orig_mod", net)
    places = sorted({str(p.device) for p in net.parameters()})
    if len(places) > 1 or "meta" in places:
        raise InputError(f"the network has parameters on {' and '.join(places)}; move it: net.to('cpu')")
    if device != "auto" and places and torch.device(places[0]).type != choose_device(device).type:
        raise InputError(f"the network is on {places[0]}, not on {device}; move it: net.to({device!r})")
    return replace(_described("the network", net, is_file=False), run=run)


def _described(label: str, module: nn.Module, *, is_file: bool) -> Trained:
    card, preprocessing = getattr(module, "card", None), getattr(module, "preprocessing", None)
    known = card if isinstance(card, weights.Card) else None
    specification = known.specification if known is not None else None
    return Trained(
        label,
        module,
        preprocessing if isinstance(preprocessing, Preprocessing) else None,
        type(module).__name__ if specification is None else specification.name,
        {} if known is None else known.training,
        is_file,
        state_of(known),
        known is not None and known.assumes_classes,
    )


def kind_of(value: object) -> str:
    """What messages call a value of a wrong type."""
    return (
        f"the class {value.__name__}"
        if isinstance(value, type)
        else f"a value of type {type(value).__name__}"
    )


def state_notes(path: str | Path, module: nn.Module) -> Iterator[str]:
    """Lines about weights of a run that did not finish; none about all others."""
    card = getattr(module, "card", None)
    if not isinstance(card, weights.Card):
        return
    if note := state_of(card).note(path):
        yield note
    if card.training.get("averaged") is False:
        yield f"{path}: weights of the last step; averaged ones are written at the end of the run"
