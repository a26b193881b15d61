"""Blocks of the published ResNets with a twist (liuyao12 2021) from their state_dict.

    conv1.weight, conv1x.weight, conv1y.weight, ..., bn1, bn2, (bn3,) shortcut.0.weight, shortcut.1

The stored kernels are raw: the published forward pass projects `*x` first and computes `*y` from it, so the
stored `*y` are unused. In a basic block Wx is projected to odd kernels and Wy is Wx^T flipped along the rows
(tie saddle: trace-free strain, although its text says rotation and scaling). In a bottleneck Wx is made
antisymmetric along each axis in turn, so its first-order part is exactly zero (tie mixed).
"""

import torch
from torch import Tensor, nn

from resode.errors import InputError, nearest
from resode.interop.formats import State, rename
from resode.models.layouts import UnitSpec
from resode.models.twisting import twist
from resode.models.units import ActivatedUnit, BottleneckUnit, shortcut_b
from resode.operators.twist import TwistConv2d
from resode.weights import fill

BLOCKS = ("basic", "bottleneck")
RULES = {
    r"(conv\d)\.weight": r"\1.weight",
    r"(bn\d)\.(\w+)": r"\1.\2",
    r"shortcut\.([01])\.(\w+)": r"downsample.\1.\2",
}


def from_twist_block(
    state_dict: State, *, block: str, stride: int, in_channels: int, channels: int
) -> nn.Module:
    """One published block as a module with the same outputs and dtype, in evaluation mode.

    (N, in_channels, H, W) -> (N, C, H / stride, W / stride) with C = channels for a basic block, 4 channels
    for a bottleneck.

    Args:
        state_dict: the block's tensors by name.
        block: basic or bottleneck.
        stride: of the block.
        in_channels: of its input.
        channels: of its 3x3 convolutions.

    Raises:
        InputError: an unknown block, or tensors that do not fit this block.
    """
    if block not in BLOCKS:
        raise InputError(f"unknown block '{block}'{nearest(block, BLOCKS)} (basic, bottleneck)")
    module, names, tie = _block(block, stride, in_channels, channels)
    module = twist(module, names, tie=tie, coordinates="published", form="separate")
    try:
        plain = rename({n: t for n, t in state_dict.items() if not _is_twist(n)}, RULES)
        twists = {
            f"{name}.twist": _coefficients(module.get_submodule(name), state_dict, name) for name in names
        }
        counters = {n: t for n, t in module.state_dict().items() if n.endswith(".num_batches_tracked")}
        fill(module, {**counters, **plain, **twists})
    except InputError as error:
        raise InputError(f"no such block with a twist: {error}") from None
    return module.eval()


def _block(block: str, stride: int, inputs: int, channels: int) -> tuple[nn.Module, list[str], str]:
    """The plain block, the names of its twisted convolutions, and their tie."""
    if block == "basic":
        spec = UnitSpec(inputs, channels, channels, (stride, 1))
        return ActivatedUnit(spec, shortcut_b), ["conv1", "conv2"], "saddle"
    spec = UnitSpec(inputs, channels, 4 * channels, (1, stride))
    return BottleneckUnit(spec, shortcut_b), ["conv2"], "mixed"


def _is_twist(name: str) -> bool:
    return name.endswith(("x.weight", "y.weight")) and name.startswith("conv")


def _coefficients(layer: nn.Module, state: State, name: str) -> Tensor:
    """The free coefficients of the tie: the projection of a raw Wx, each the mean of its entries."""
    assert isinstance(layer, TwistConv2d)
    raw = state.get(f"{name}x.weight")
    if raw is None or raw.shape != layer.weight.shape:
        problem = "is missing" if raw is None else f"has the shape {tuple(raw.shape)}"
        raise InputError(f"{name}x.weight {problem}; {tuple(layer.weight.shape)} is needed")
    of_wx = layer.basis[:, 0].to(raw.dtype)  # (coefficients, rows, columns)
    return torch.einsum("oihw,nhw->oin", raw, of_wx) / of_wx.square().sum((1, 2))
