"""Networks of the DynamicBlocks toolbox from their state_dict.

    open.{conv,normLayer}, dynamicBlocks.B.controlLayers.J.*, connectors.B.{conv,normLayer}, linear

In a parabolic layer `weight` is K (repeated as `conv.weight` and `convt.weight`), `conv.bias` is b1,
`convt.bias` b2, and `normLayer.bias` the shift of TvNorm, whose scale is frozen at 1; a double layer has
conv1, conv2, normLayer1 and normLayer2. Controls are interpolated linearly; nodes that the scheme never
touches are kept, as in the toolbox.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from resode.errors import InputError, nearest
from resode.grids import TimeGrid
from resode.interop.formats import State, rename
from resode.models.dynamic import DynamicNet
from resode.models.published import dynamicblocks
from resode.weights import fill

SCHEMES = {"rk1": "euler", "rk4": "rk4"}
NORMS: Mapping[str, Any] = {"tv": {"name": "tv", "eps": 1e-4, "scale": False}, "none": "none"}

TRANSITIONS = {
    r"open\.conv\.(weight|bias)": r"stem.conv.\1",
    r"open\.normLayer\.(\w+)": r"stem.norm.\1",
    r"connectors\.(\d+)\.conv\.(weight|bias)": r"connectors.\1.conv.\2",
    r"connectors\.(\d+)\.normLayer\.(\w+)": r"connectors.\1.norm.\2",
    r"linear\.(weight|bias)": r"head.linear.\1",
}
LAYER = r"dynamicBlocks\.(\d+)\.controlLayers\.(\d+)\."
LAYERS = {
    "parabolic": {
        LAYER + r"weight": r"stages.\1.controls.\2.conv.weight",
        LAYER + r"conv\.bias": r"stages.\1.controls.\2.conv.bias",
        LAYER + r"convt\.bias": r"stages.\1.controls.\2.bias",
        LAYER + r"normLayer\.bias": r"stages.\1.controls.\2.norm.bias",
    },
    "double": {
        LAYER + r"conv([12])\.(weight|bias)": r"stages.\1.controls.\2.conv\3.\4",
        LAYER + r"normLayer([12])\.bias": r"stages.\1.controls.\2.norm\3.bias",
    },
}


def from_dynamicblocks(
    state_dict: State,
    *,
    scheme: str,
    layer: str,
    states: Sequence[float] | TimeGrid,
    controls: Sequence[float] | TimeGrid,
    widths: Sequence[int],
    in_channels: int = 3,
    classes: int = 10,
    norm: str = "tv",
) -> DynamicNet:
    """A network of the toolbox as a `DynamicNet` with the same logits and dtype, in evaluation mode.

    Args:
        state_dict: the toolbox's tensors by name.
        scheme: rk1 or rk4.
        layer: parabolic or double.
        states: the state nodes of every block.
        controls: the control nodes of every block.
        widths: the width of each block, then the width after the last connector.
        in_channels: the channels of an image.
        classes: the number of logits.
        norm: of the layers: tv (its scale frozen at 1, eps 1e-4) or none.

    Raises:
        InputError: an unknown scheme, layer or norm, or tensors that do not fit this network.
    """
    _refuse_unknown(scheme=(scheme, SCHEMES), layer=(layer, LAYERS), norm=(norm, NORMS))
    with torch.random.fork_rng(devices=[]):
        net = dynamicblocks(
            scheme=SCHEMES[scheme],
            layer=layer,
            states=TimeGrid.of(states),
            controls=TimeGrid.of(controls),
            widths=widths,
            norm=NORMS[norm],
            keep_unused=True,
            classes=classes,
            in_channels=in_channels,
        )
    try:
        tensors = rename(_needed(state_dict, layer), {**TRANSITIONS, **LAYERS[layer]})
        counters = {n: t for n, t in net.state_dict().items() if n.endswith(".num_batches_tracked")}
        fill(net, {**counters, **tensors})
    except InputError as error:
        raise InputError(f"no such DynamicBlocks network: {error}") from None
    return net.eval()


def _refuse_unknown(**given: tuple[str, Mapping[str, Any]]) -> None:
    mistakes = [
        f"unknown {what} '{value}'{nearest(str(value), known)} ({', '.join(known)})"
        for what, (value, known) in given.items()
        if value not in known
    ]
    if mistakes:
        raise InputError(*mistakes)


def _needed(state_dict: State, layer: str) -> dict[str, Tensor]:
    """Drop the repetitions of K and the frozen scales; `InputError` if they are not repeated or not 1."""
    needed = {}
    for name, tensor in state_dict.items():
        parent, _, last = name.rpartition(".")
        of_layer = ".controlLayers." in name
        if of_layer and layer == "parabolic" and name.endswith((".conv.weight", ".convt.weight")):
            kernel = state_dict.get(f"{parent.rpartition('.')[0]}.weight")
            if kernel is not None and not torch.equal(kernel, tensor):
                raise InputError(f"{name} differs from the kernel of its layer, which the toolbox shares")
        elif of_layer and ".normLayer" in name and last == "weight":
            if not torch.equal(tensor, torch.ones_like(tensor)):
                raise InputError(f"{name} is not 1, where the toolbox freezes it")
        else:
            needed[name] = tensor
    return needed
