"""Batch normalisation with the addition and ReLU behind it, y = relu(w (x - m) r + b + s), as one operator.

m and v are mean and variance over the batch and its pixels, r = (v + eps)^(-1/2) (Ioffe & Szegedy 2015,
arXiv:1502.03167), s the other branch of a residual unit. Separate operations pass over memory four or more
times, this operator twice. Sums are accumulated in single precision over tiles of 64 pixels, in double
precision over tiles.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from resode.kernels.library import call_kernel, library, register_operator
from resode.kernels.nodes import arguments, can_move, example, has_static_shape, only_user

LANES = 16  # the number of channels is a multiple of it
DTYPES = (torch.float32, torch.bfloat16)
_LAST = torch.channels_last

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


def available() -> bool:
    """Whether the kernels could be built on this machine."""
    return library() is not None


def supports(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether the operator takes this input: (N, C, H, W) on the CPU, fp32 or bf16, C a multiple of 16."""
    return (
        x.device.type == "cpu"
        and x.dim() == 4
        and x.dtype in DTYPES
        and x.shape[1] % LANES == 0
        and x.numel() > x.shape[1]
        and weight is not None
        and bias is not None
        and weight.dtype == bias.dtype == torch.float32
    )


def _batch_norm(
    x: Tensor, other: Tensor | None, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> Outputs:
    x, weight, bias = x.contiguous(memory_format=_LAST), weight.contiguous(), bias.contiguous()
    other = None if other is None else other.contiguous(memory_format=_LAST)
    y = torch.empty_like(x)
    mean, variance, r = (torch.empty_like(weight) for _ in range(3))
    inputs, outputs = (x, other, weight, bias, eps, int(relu)), (y, mean, variance, r)
    call_kernel("batch_norm_forward", "ill" + "ppppdi" + "pppp", *_sizes(x), *inputs, *outputs)
    return y, mean, variance, r


def _batch_norm_fake(
    x: Tensor, other: Tensor | None, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> Outputs:
    y = torch.empty_like(x, memory_format=_LAST)
    return y, torch.empty_like(weight), torch.empty_like(weight), torch.empty_like(weight)


batch_norm = register_operator(
    "batch_norm(Tensor x, Tensor? other, Tensor weight, Tensor bias, float eps, bool relu)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _batch_norm,
    _batch_norm_fake,
)
"""y, and for each channel the mean, the unbiased variance and r.

Args:
    x: (N, C, H, W), fp32 or bf16, see `supports`.
    other: added before the ReLU; shape and dtype of x.
    weight: (C,) fp32.
    bias: (C,) fp32.
    eps: added to the variance.
    relu: whether negative values become zero (NaN stays NaN).
"""


def _batch_norm_backward(
    g: Tensor, x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, r: Tensor, relu: bool
) -> Outputs:
    g, x = g.to(x.dtype).contiguous(memory_format=_LAST), x.contiguous(memory_format=_LAST)
    y = None if y is None else y.contiguous(memory_format=_LAST)
    weight, bias, mean, r = (each.contiguous() for each in (weight, bias, mean, r))
    dx = torch.empty_like(x)
    ds = x.new_empty(0) if y is None else torch.empty_like(x)
    dw, db = torch.empty_like(weight), torch.empty_like(weight)
    inputs, outputs = (x, y, g, weight, bias, mean, r, int(relu)), (dx, None if y is None else ds, dw, db)
    call_kernel("batch_norm_backward", "ill" + "pppppppi" + "pppp", *_sizes(x), *inputs, *outputs)
    return dx, ds, dw, db


def _batch_norm_backward_fake(
    g: Tensor, x: Tensor, y: Tensor | None, weight: Tensor, *_: Tensor | bool
) -> Outputs:
    dx = torch.empty_like(x, memory_format=_LAST)
    ds = x.new_empty(0) if y is None else torch.empty_like(dx)
    return dx, ds, torch.empty_like(weight), torch.empty_like(weight)


batch_norm_backward = register_operator(
    "batch_norm_backward(Tensor g, Tensor x, Tensor? y, Tensor weight, Tensor bias, Tensor mean, Tensor r,"
    " bool relu) -> (Tensor, Tensor, Tensor, Tensor)",
    _batch_norm_backward,
    _batch_norm_backward_fake,
)
"""The gradients with respect to x, the other branch (empty if there is none), weight and bias.

With h = g where the result is positive (h = g without a ReLU) and means over the batch and its pixels:
dx = w r (h - mean(h) - r^2 (x - m) mean(h (x - m))), ds = h, dw = r sum h (x - m), db = sum h. `y` is the
result if another branch was added before a ReLU, else None.
"""


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    x, other, weight, bias, _, relu = inputs
    y, mean, _, r = output
    ctx.save_for_backward(x, y if relu and other is not None else None, weight, bias, mean, r)
    ctx.relu, ctx.other = relu, other is not None


def _backward(ctx: Any, g: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    x, y, weight, bias, mean, r = ctx.saved_tensors
    dx, ds, dw, db = batch_norm_backward(g, x, y, weight, bias, mean, r, ctx.relu)
    if ctx.other and not ctx.relu:
        ds = g
    return dx, ds if ctx.other else None, dw, db, None, None


torch.library.register_autograd("resode::batch_norm", _backward, setup_context=_setup)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Whether x is bf16, and the rows and columns of (N H W, C)."""
    channels = x.shape[1]
    return int(x.dtype == torch.bfloat16), x.numel() // channels, channels


# ---------------------------------------------------------------- in a graph

_ADDITIONS = (operator.add, operator.iadd, torch.add)
_RELUS = (F.relu, torch.relu, torch.relu_, F.relu_)
_RELU_METHODS = ("relu", "relu_")
_ARGUMENTS = {
    "input": None, "running_mean": None, "running_var": None, "weight": None, "bias": None, "training": False,
    "momentum": 0.1, "eps": 1e-5,
}  # fmt: skip


def replace(graph: fx.Graph) -> int:
    """Replace each batch norm in training mode, with an addition and a ReLU that alone use it.

    Returns their number.
    """
    nodes = [node for node in graph.nodes if _is_supported(node)]
    if not nodes or not available():  # which builds the kernels
        return 0
    for node in nodes:
        _replace_node(graph, node)
    return len(nodes)


def _is_supported(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target is not F.batch_norm:
        return False
    given = arguments(node, _ARGUMENTS)
    x, weight, bias = (example(given[name]) for name in ("input", "weight", "bias"))
    return (
        given["training"] is True
        and isinstance(given["momentum"], float | int)
        and x is not None
        and has_static_shape(x)
        and supports(x, weight, bias)
    )


def _replace_node(graph: fx.Graph, node: fx.Node) -> None:
    given = arguments(node, _ARGUMENTS)
    last, other = node, None
    addition = only_user(node)
    if (
        addition is not None
        and (summand := _summand(node, addition)) is not None
        and can_move(node, addition)
    ):
        last, other = addition, summand
    user = only_user(last)
    relu = user if user is not None and _is_relu(user) and can_move(last, user) else None
    last = last if relu is None else relu
    with graph.inserting_before(last):
        result = graph.call_function(
            batch_norm,
            (given["input"], other, given["weight"], given["bias"], float(given["eps"]), relu is not None),
        )
        y, mean, variance = (graph.call_function(operator.getitem, (result, k)) for k in range(3))
        if given["running_mean"] is not None:
            batch = [graph.call_method("detach", (each,)) for each in (mean, variance)]
            for name, value in zip(("running_mean", "running_var"), batch, strict=True):
                graph.call_method("lerp_", (given[name], value, float(given["momentum"])))
    y.meta = dict(last.meta)
    last.replace_all_uses_with(y)
    for replaced in (relu, None if other is None else addition, node):
        if replaced is not None:
            graph.erase_node(replaced)


def _summand(node: fx.Node, addition: fx.Node) -> fx.Node | None:
    """What an addition adds to this node, if both are tensors of one shape and dtype."""
    if addition.op != "call_function" or addition.target not in _ADDITIONS:
        return None
    if len(addition.args) != 2 or addition.kwargs:
        return None
    first, second = addition.args
    if addition.target is operator.iadd and first is not node:  # the other tensor changes in place
        return None
    other = second if first is node else first
    a, b = example(node), example(other)
    if not isinstance(other, fx.Node) or other is node or a is None or b is None:
        return None
    return other if a.shape == b.shape and a.dtype == b.dtype else None


def _is_relu(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _RELU_METHODS
    return node.op == "call_function" and node.target in _RELUS
