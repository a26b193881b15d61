"""Blocks of the published ResNets with a twist (liuyao12, pytorch-cifar) from their state_dict.

    conv1.weight, conv1x.weight, conv1y.weight, ..., bn1, bn2, (bn3,) shortcut.0.weight, shortcut.1

The stored kernels are raw: the published forward pass projects `*x` first and computes `*y` from it, so the
stored `*y` are unused (but for the tie odd). How Wx and Wy are tied differs between the commits of the
notebook:

    basic       410b9bb            Wx odd, Wy its quarter turn                       conformal
                26ab4eb, aa33035   Wx odd, Wy the quarter turn the other way         saddle
    bottleneck  26ab4eb            Wx and Wy odd                                     odd
                aa33035            Wx antisymmetric along each axis, Wy its turn     mixed

aa33035 is the last. Saddle is strain without trace, although the text says rotation and scaling; the
first-order part of mixed is zero.
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

TIES = {"basic": ("saddle", "conformal"), "bottleneck": ("mixed", "odd")}  # of the last commit, and before
RULES = {
    r"(conv\d)\.weight": r"\1.weight",
    r"(bn\d)\.(\w+)": r"\1.\2",
    r"shortcut\.([01])\.(\w+)": r"downsample.\1.\2",
}


def from_twist_block(
    state_dict: State, *, block: str, stride: int, in_channels: int, channels: int, tie: str | None = None
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
        tie: saddle or conformal for a basic block, mixed or odd for a bottleneck (default: the first, as in
            the last commit).

    Raises:
        InputError: an unknown block, another tie, or tensors that do not fit this block.
    """
    if block not in TIES:
        raise InputError(f"unknown block '{block}'{nearest(block, TIES)} (basic, bottleneck)")
    if tie not in (None, *TIES[block]):
        raise InputError(f"tie '{tie}'{nearest(str(tie), TIES[block])}: use {' or '.join(TIES[block])}")
    module, names = _block(block, stride, in_channels, channels)
    tie = TIES[block][0] if tie is None else tie
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


def _block(block: str, stride: int, inputs: int, channels: int) -> tuple[nn.Module, list[str]]:
    """The plain block and the names of its twisted convolutions."""
    if block == "basic":
        spec = UnitSpec(inputs, channels, channels, (stride, 1))
        return ActivatedUnit(spec, shortcut_b), ["conv1", "conv2"]
    spec = UnitSpec(inputs, channels, 4 * channels, (1, stride))
    return BottleneckUnit(spec, shortcut_b), ["conv2"]


def _is_twist(name: str) -> bool:
    return name.endswith(("x.weight", "y.weight")) and name.startswith("conv")


def _coefficients(layer: nn.Module, state: State, name: str) -> Tensor:
    """The free coefficients of the tie: the projection of raw kernels, each the mean of its entries.

    Those of Wx, and those of Wy that are not tied to Wx.
    """
    assert isinstance(layer, TwistConv2d)
    total: Tensor | float = 0.0
    own = torch.zeros(len(layer.basis), dtype=torch.bool)  # coefficients that a kernel before has
    for axis, suffix in enumerate("xy"):
        basis = layer.basis[:, axis].masked_fill(own[:, None, None], 0)
        if not basis.any():
            continue
        own |= basis.ne(0).any(2).any(1)
        raw = state.get(f"{name}{suffix}.weight")
        if raw is None or raw.shape != layer.weight.shape:
            problem = "is missing" if raw is None else f"has the shape {tuple(raw.shape)}"
            raise InputError(f"{name}{suffix}.weight {problem}; {tuple(layer.weight.shape)} is needed")
        sizes = basis.square().sum((1, 2)).clamp(min=1).to(raw.dtype)
        total = total + torch.einsum("oihw,nhw->oin", raw, basis.to(raw.dtype)) / sizes
    assert isinstance(total, Tensor)
    return total
