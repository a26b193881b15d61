"""Networks of the DynamicBlocks toolbox from their state_dict.

    open.{conv,normLayer}, dynamicBlocks.B.controlLayers.J.*, connectors.B.{conv,normLayer}, linear

In a parabolic layer `weight` is K (repeated as `conv.weight` and `convt.weight`), `conv.bias` is b1,
`convt.bias` b2, and `normLayer.bias` the shift of TvNorm, whose scale is frozen at 1; a double layer has
conv1, conv2, normLayer1 and normLayer2. Controls are interpolated linearly; nodes that the scheme never
touches are kept, as in the toolbox.

    dynamicBlocks.B.stateLayers.K          rk1: theta(t_K), as of the last forward pass
    dynamicBlocks.B.stateLayers.K.I        rk4: theta at evaluation I of step K

State layers hold no parameters: they are interpolated from the controls in every forward pass, and are not
read. With norm "Batch" alone they own something, the running statistics of their evaluation. rk4 keeps its
state layers in a plain list, so that its state_dict lacks these statistics; they can be added (`HOW_TO_ADD`).
"""

import re
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

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
SCHEMES = {"rk1": "euler", "rk4": "rk4"}
NORMS: Mapping[str, Any] = {
    "tv": {"name": "tv", "eps": 1e-4, "scale": False}, "batch": "batch", "none": "none"
}  # fmt: skip
EVALUATIONS = {"rk1": 1, "rk4": 4}  # of a step
HOW_TO_ADD = (
    "add them before saving: state.update({f'dynamicBlocks.{b}.stateLayers.{k}.{n}': t for b, block in "
    "enumerate(net.dynamicBlocks) for k, step in enumerate(block.stateLayers) for n, t in "
    "step.state_dict().items()})"
)

TRANSITIONS = {
    r"open\.conv\.(weight|bias)": r"stem.conv.\1",
    r"open\.normLayer\.(\w+)": r"stem.norm.\1",
    r"connectors\.(\d+)\.conv\.(weight|bias)": r"connectors.\1.conv.\2",
    r"connectors\.(\d+)\.normLayer\.(\w+)": r"connectors.\1.norm.\2",
    r"linear\.(weight|bias)": r"head.linear.\1",
}
LAYER = r"dynamicBlocks\.(\d+)\.controlLayers\.(\d+)\."
STATE_LAYER = r"dynamicBlocks\.(\d+)\.stateLayers\.(\d+)\.(?:(\d+)\.)?(.*)"
LAYERS = {
    "parabolic": {
        LAYER + r"weight": r"stages.\1.controls.\2.conv.weight",
        LAYER + r"conv\.bias": r"stages.\1.controls.\2.conv.bias",
        LAYER + r"convt\.bias": r"stages.\1.controls.\2.bias",
        LAYER + r"normLayer\.(weight|bias)": r"stages.\1.controls.\2.norm.\3",
    },
    "double": {
        LAYER + r"conv([12])\.(weight|bias)": r"stages.\1.controls.\2.conv\3.\4",
        LAYER + r"normLayer([12])\.(weight|bias)": r"stages.\1.controls.\2.norm\3.\4",
    },
}
LAYERS["preact_double"] = LAYERS["double"]


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
        layer: parabolic, double or preact_double (DoubleSymLayer, DoubleLayer, PreactDoubleLayer).
        states: the state nodes of every block.
        controls: the control nodes of every block.
        widths: the width of each block, then the width after the last connector.
        in_channels: the channels of an image.
        classes: the number of logits.
        norm: of the layers: tv (TvNorm, its scale frozen at 1, eps 1e-4), batch ("Batch") or none.

    Raises:
        InputError: an unknown scheme, layer or norm, or tensors that do not fit this network.
    """
    _refuse_unknown(scheme=(scheme, SCHEMES), layer=(layer, LAYERS), norm=(norm, NORMS))
    states = TimeGrid.of(states)
    _refuse_misfit(state_dict, scheme, states)
    with torch.random.fork_rng(devices=[]):
        net = dynamicblocks(
            scheme=SCHEMES[scheme],
            layer=layer,
            states=states,
            controls=TimeGrid.of(controls),
            widths=widths,
            norm=NORMS[norm],
            keep_unused=True,
            classes=classes,
            in_channels=in_channels,
        )
    try:
        tensors = rename(_needed(state_dict, layer, norm), {**TRANSITIONS, **LAYERS[layer]})
        if norm == "batch":
            tensors |= _statistics(state_dict, scheme)
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


def _refuse_misfit(state_dict: State, scheme: str, states: TimeGrid) -> None:
    """Raise `InputError` if the state layers are of another scheme, or not one for each step."""
    found = steps_of(state_dict)
    if found is None:
        return
    if found[0] != scheme:
        raise InputError(f"its state layers (stateLayers.*) are those of {found[0]}, not of {scheme}")
    if found[1] != states.steps:
        raise InputError(
            f"its state layers (stateLayers.*) are those of {found[1]} steps; {states} has {states.steps}"
        )


def _needed(state_dict: State, layer: str, norm: str) -> dict[str, Tensor]:
    """The tensors in use by the toolbox's names, but running statistics of state layers.

    Dropped are the repetitions of K, the frozen scales of TvNorm, state layers, and the statistics of control
    layers, which are never evaluated.

    Raises:
        InputError: a K that is not repeated, or a frozen scale that is not 1.
    """
    needed = {}
    for name, tensor in state_dict.items():
        parent, _, last = name.rpartition(".")
        of_layer = ".controlLayers." in name
        if ".stateLayers." in name or (of_layer and last in STATISTICS):
            continue
        if of_layer and layer == "parabolic" and name.endswith((".conv.weight", ".convt.weight")):
            kernel = state_dict.get(f"{parent.rpartition('.')[0]}.weight")
            if kernel is not None and not torch.equal(kernel, tensor):
                raise InputError(f"{name} differs from the kernel of its layer, which the toolbox shares")
        elif of_layer and ".normLayer" in name and last == "weight" and norm != "batch":
            if not torch.equal(tensor, torch.ones_like(tensor)):
                raise InputError(f"{name} is not 1, where the toolbox freezes it")
        else:
            needed[name] = tensor
    return needed


def _statistics(state_dict: State, scheme: str) -> dict[str, Tensor]:
    """The running statistics of the state layers, by our names of evaluations.

    Raises:
        InputError: there are none.
    """
    found = {}
    for name, tensor in state_dict.items():
        match = re.fullmatch(STATE_LAYER, name)
        if match and match[4].rpartition(".")[2] in STATISTICS:
            evaluation = int(match[2]) * EVALUATIONS[scheme] + int(match[3] or 0)
            found[f"stages.{match[1]}.statistics.{evaluation}.{match[4].replace('normLayer', 'norm')}"] = (
                tensor
            )
    if not found:
        raise InputError(f"it lacks the running statistics of its state layers (stateLayers.*); {HOW_TO_ADD}")
    return found


def steps_of(state_dict: State) -> tuple[str, int] | None:
    """The scheme, rk1 or rk4, and the number of steps that state layers tell; None without any."""
    layers = [match for match in (re.fullmatch(STATE_LAYER, name) for name in state_dict) if match]
    if not layers:
        return None
    return ("rk4" if layers[0][3] else "rk1"), len({match[2] for match in layers})
