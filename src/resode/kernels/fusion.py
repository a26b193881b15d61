"""A compiler's backend that puts this package's operators into the graph of a forward pass.

`torch.compile(module, backend=fused)`: every batch normalisation in training mode, with an addition and a
ReLU that alone use its result, becomes one operator (`resode.kernels.batch_norm`), and so does every 3x3
convolution under bf16 where there are matrix units (`resode.kernels.convolution`); the rest goes to torch's
own compiler. Where nothing fits (a GPU, evaluation, no C++ compiler) it is torch's compiler alone.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from resode.kernels import batch_norm, convolution

_BATCH_NORM = {
    "input": None, "running_mean": None, "running_var": None, "weight": None, "bias": None, "training": False,
    "momentum": 0.1, "eps": 1e-5,
}  # fmt: skip
_CONVOLUTION = {
    "input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1
}  # fmt: skip
_CONVOLUTIONS = (F.conv2d, torch.conv2d)
_ADDITIONS = (operator.add, operator.iadd, torch.add)
_INPLACE = ("batch_norm", "iadd", "isub", "imul", "itruediv", "ipow", "setitem")
_MODES = ("_set_grad_enabled", "_enter", "_exit", "set_grad")
_RELUS = (F.relu, torch.relu, torch.relu_, F.relu_)
_RELU_METHODS = ("relu", "relu_")


def fused(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """The backend of `torch.compile`."""
    from torch._dynamo.backends.registry import lookup_backend

    spare_probes()
    fuse(graph)
    compiled: Callable[..., Any] = lookup_backend("inductor")(graph, inputs)
    return compiled


def spare_probes() -> None:
    """Where our kernels found a compiler that knows the matrix units, torch needs not ask what it knows.

    It would build and load a program for each set of instructions, where nothing is cached.
    """
    from torch._inductor import config

    if config.cpp.vec_isa_ok is None and convolution.available():
        config.cpp.vec_isa_ok = True


def fuse(graph: fx.GraphModule) -> int:
    """Put the operators in the place of what they do; how many are put."""
    norms = [node for node in graph.graph.nodes if _is_batch_norm(node)]
    convolutions = [node for node in graph.graph.nodes if _is_convolution(node)]
    if norms and not batch_norm.available():  # which builds the kernels
        norms = []
    if convolutions and not convolution.available():
        convolutions = []
    for node in norms:
        _replace(graph.graph, node)
    for node in convolutions:
        given = _given(node, _CONVOLUTION)
        node.target, node.kwargs = torch.ops.resode.convolution.default, {}
        node.args = (given["input"], given["weight"])
    if norms or convolutions:
        graph.graph.lint()
        graph.recompile()
    return len(norms) + len(convolutions)


def _is_convolution(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target not in _CONVOLUTIONS:
        return False
    given = _given(node, _CONVOLUTION)
    x, weight, y = _value(given["input"]), _value(given["weight"]), _value(node)
    plain = (given["stride"], given["padding"], given["dilation"], given["groups"])
    return (
        x is not None
        and weight is not None
        and y is not None
        and y.dtype == torch.bfloat16
        and given["bias"] is None
        and plain in (((1, 1), (1, 1), (1, 1), 1), (1, 1, 1, 1))
        and x.requires_grad
        and weight.requires_grad
        and convolution.fits(x, weight)
    )


def _is_batch_norm(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target is not F.batch_norm:
        return False
    given = _given(node, _BATCH_NORM)
    x, weight, bias = (_value(given[name]) for name in ("input", "weight", "bias"))
    return (
        given["training"] is True
        and isinstance(given["momentum"], float | int)
        and x is not None
        and all(isinstance(n, int) for n in x.shape)  # not one that is left open
        and batch_norm.fits(x, weight, bias)
    )


def _given(node: fx.Node, defaults: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    return defaults | dict(zip(defaults, node.args, strict=False)) | node.kwargs


def _value(node: Any) -> Tensor | None:
    """The tensor that a node stands for, without its numbers."""
    found = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return found if isinstance(found, Tensor) else None


def _replace(graph: fx.Graph, node: fx.Node) -> None:
    given = _given(node, _BATCH_NORM)
    last, other = node, None
    addition = _only_user(node)
    if addition is not None and (found := _added_to(node, addition)) is not None and _calm(node, addition):
        last, other = addition, found
    after = _only_user(last)
    relu = after is not None and _is_relu(after) and _calm(last, after)
    last = after if relu and after is not None else last
    with graph.inserting_before(last):
        made = graph.call_function(
            torch.ops.resode.batch_norm.default,
            (given["input"], other, given["weight"], given["bias"], float(given["eps"]), relu),
        )
        y, mean, variance = (graph.call_function(operator.getitem, (made, k)) for k in range(3))
        if given["running_mean"] is not None:
            x = _value(given["input"])
            assert x is not None
            n = x.numel() // x.shape[1]
            for kept, now, factor in (("running_mean", mean, 1.0), ("running_var", variance, n / (n - 1))):
                now = graph.call_method("detach", (now,))
                now = now if factor == 1 else graph.call_function(torch.mul, (now, factor))
                graph.call_method("lerp_", (given[kept], now, float(given["momentum"])))
    y.meta = dict(last.meta)
    last.replace_all_uses_with(y)
    for done in (after if relu else None, addition if other is not None else None, node):
        if done is not None:
            graph.erase_node(done)


def _calm(begin: fx.Node, end: fx.Node) -> bool:
    """Whether nothing between two nodes changes a tensor or a mode: then `begin` can wait for `end`."""
    node = begin.next
    while node is not end:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        changes = name.endswith("_") or name in _INPLACE or node.kwargs.get("inplace")
        if node.op in ("call_function", "call_method") and (changes or name.startswith(_MODES)):
            return False
        node = node.next
    return True


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _added_to(node: fx.Node, addition: fx.Node) -> fx.Node | None:
    """What an addition adds to this node, where both are tensors of one shape and type."""
    if addition.op != "call_function" or addition.target not in _ADDITIONS:
        return None
    if len(addition.args) != 2 or addition.kwargs:
        return None
    first, second = addition.args
    if addition.target is operator.iadd and first is not node:  # which changes the other one
        return None
    other = second if first is node else first
    mine, its = _value(node), _value(other)
    if not isinstance(other, fx.Node) or other is node or mine is None or its is None:
        return None
    return other if mine.shape == its.shape and mine.dtype == its.dtype else None


def _is_relu(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _RELU_METHODS
    return node.op == "call_function" and node.target in _RELUS
