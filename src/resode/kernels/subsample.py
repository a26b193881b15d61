"""Every second pixel with channels of zeros around its own, as one operator on channels-last memory.

This is shortcut A (He et al. 2016, arXiv:1512.03385, section 4.2). Inductor writes its gradient pixel by
pixel, and in another layout than the neighbouring operators use.
"""

import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from resode.kernels.library import register_operator
from resode.kernels.nodes import example, has_static_shape

_LAST = torch.channels_last
_PADS = (F.pad, torch._C._nn.pad)
_EVERY_SECOND_PIXEL = (slice(None), slice(None), slice(None, None, 2), slice(None, None, 2))


def supports(x: Tensor) -> bool:
    """Whether the operator takes this input: (N, C, H, W) on the CPU, with an even height and width."""
    return x.device.type == "cpu" and x.dim() == 4 and x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0


def _subsample(x: Tensor, before: int, after: int) -> Tensor:
    y = _subsample_fake(x, before, after).zero_()
    y[:, before : before + x.shape[1]] = x[:, :, ::2, ::2]
    return y


def _subsample_fake(x: Tensor, before: int, after: int) -> Tensor:
    shape = (x.shape[0], before + x.shape[1] + after, x.shape[2] // 2, x.shape[3] // 2)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_LAST)


subsample = register_operator(
    "subsample(Tensor x, int before, int after) -> Tensor", _subsample, _subsample_fake
)
"""(N, C, H, W) -> (N, before + C + after, H / 2, W / 2)."""


def _subsample_backward(g: Tensor, before: int, after: int) -> Tensor:
    dx = _subsample_backward_fake(g, before, after).zero_()
    dx[:, :, ::2, ::2] = g[:, before : g.shape[1] - after]
    return dx


def _subsample_backward_fake(g: Tensor, before: int, after: int) -> Tensor:
    shape = (g.shape[0], g.shape[1] - before - after, 2 * g.shape[2], 2 * g.shape[3])
    return torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=_LAST)


subsample_backward = register_operator(
    "subsample_backward(Tensor g, int before, int after) -> Tensor",
    _subsample_backward,
    _subsample_backward_fake,
)
"""The gradient: (N, before + C + after, H, W) -> (N, C, 2 H, 2 W), with zeros at the other pixels."""


def _setup(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
    _, ctx.before, ctx.after = inputs


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
    return subsample_backward(g, ctx.before, ctx.after), None, None


torch.library.register_autograd("resode::subsample", _backward, setup_context=_setup)


# ---------------------------------------------------------------- in a graph


def replace(graph: fx.Graph) -> int:
    """Replace each F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, after)); returns their number."""
    return sum(_replace_node(graph, node) for node in list(graph.nodes))


def _replace_node(graph: fx.Graph, node: fx.Node) -> bool:
    """Replace a node if it is such a padding; returns whether it was."""
    if node.op != "call_function" or node.target not in _PADS or not isinstance(node.args[0], fx.Node):
        return False
    pixels, sides = node.args[0], tuple(cast("Sequence[int]", node.args[1]))
    zeros = (*node.args[2:], "constant")[0] == "constant" and not any(node.args[3:]) and not node.kwargs
    sliced = pixels.op == "call_function" and pixels.target is operator.getitem
    if not (zeros and sliced and pixels.args[1] == _EVERY_SECOND_PIXEL and len(pixels.users) == 1):
        return False
    x = example(pixels.args[0])
    channels_alone = len(sides) == 6 and not any(sides[:4]) and min(sides) >= 0
    if not channels_alone or x is None or not (has_static_shape(x) and supports(x)):
        return False
    node.target, node.args = subsample, (pixels.args[0], *sides[4:])
    graph.erase_node(pixels)
    return True
