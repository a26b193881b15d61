"""A compiler's backend that puts this package's operators into the graph of a forward pass.

`torch.compile(module, backend=fused)`: every batch normalisation in training mode, with an addition and a
ReLU that alone use its result, becomes one operator (`resode.kernels.batch_norm`), and so does every 3x3
convolution under bf16 where a processor multiplies it (`resode.kernels.convolution`); the rest goes to
torch's own compiler. Where nothing fits (a GPU, evaluation, no C++ compiler) it is torch's compiler alone.
"""

import functools
import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from resode.kernels import batch_norm, convolution, subsample

REPLACEMENTS = ("batch_norm", "convolution", "subsample", "join", "follow")

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
_HALVES = (slice(None), slice(None), slice(None, None, 2), slice(None, None, 2))
_PADS = (F.pad, torch._C._nn.pad)
_RELU_METHODS = ("relu", "relu_")

Moved = tuple[fx.Node, fx.Node, float]  # a running statistic, what it moves to, and how far


def fused(graph: fx.GraphModule, inputs: list[Tensor], without: Collection[str] = ()) -> Callable[..., Any]:
    """The backend of `torch.compile`.

    `without` names replacements (of `REPLACEMENTS`) to skip, so that each can be measured:
    `torch.compile(module, backend=functools.partial(fused, without={"join"}))`.
    """
    from torch._inductor.compile_fx import compile_fx

    spare_probes()
    fuse(graph, without)
    options = {} if "join" in without else {"post_grad_custom_pre_pass": _pass()}
    compiled: Callable[..., Any] = compile_fx(graph, inputs, config_patches=options)  # type: ignore[assignment]  # torch says less
    return compiled


@functools.cache
def _pass() -> Callable[[fx.Graph], None]:
    """`join`, as torch's compiler wants it."""
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    class Join(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            join(graph)

        def uuid(self) -> bytes:
            return get_hash_for_files((__file__,))

    return Join()


def join(graph: fx.Graph) -> int:
    """Let a convolution's cotangent take in what another branch adds to it; how many do."""
    place = {node: k for k, node in enumerate(graph.nodes)}
    joined = 0
    for node in graph.find_nodes(op="call_function", target=torch.ops.resode.convolution_backward.default):
        image = next((user for user in node.users if user.args[1] == 0), None)
        addition = None if image is None else _only_user(image)
        if image is None or addition is None or addition.target is not torch.ops.aten.add.Tensor:
            continue
        other = next((each for each in addition.args if each is not image), None)
        if not isinstance(other, fx.Node) or place[other] > place[node] or addition.kwargs:
            continue
        if node.args[-1] is None and _alike(image, other):
            node.args = (*node.args[:-1], other)
            addition.replace_all_uses_with(image)
            graph.erase_node(addition)
            joined += 1
    return joined


def spare_probes() -> None:
    """Where our kernels found a compiler that knows this processor's bf16, torch needs not ask what it knows.

    It would build and load a program for each set of instructions, where nothing is cached.
    """
    from torch._inductor import config

    if config.cpp.vec_isa_ok is None and convolution.available():
        config.cpp.vec_isa_ok = True


def fuse(graph: fx.GraphModule, without: Collection[str] = ()) -> int:
    """Replace subgraphs with the operators; returns how many (`without`: see `fused`)."""
    nodes = list(graph.graph.nodes)
    norms = [] if "batch_norm" in without else [node for node in nodes if _is_batch_norm(node)]
    convolutions = [] if "convolution" in without else [node for node in nodes if _is_convolution(node)]
    if norms and not batch_norm.available():  # which builds the kernels
        norms = []
    if convolutions and not convolution.available():
        convolutions = []
    gather = "follow" not in without
    following = [moved for node in norms for moved in _replace(graph.graph, node, gather)]
    if following:
        with graph.graph.inserting_before(graph.graph.output_node()):
            graph.graph.call_function(
                torch.ops.resode.follow.default, tuple(map(list, zip(*following, strict=True)))
            )
    for node in convolutions:
        given = _given(node, _CONVOLUTION)
        x, value = given["input"], _value(given["input"])
        if value is not None and value.dtype != torch.bfloat16:
            with graph.graph.inserting_before(node):
                x = graph.graph.call_method("to", (x, torch.bfloat16))
        node.target, node.kwargs = torch.ops.resode.convolution.default, {}
        node.args = (x, given["weight"], _both(given["stride"]))
    shortcuts = 0
    if "subsample" not in without:
        shortcuts = sum(_replace_shortcut(graph.graph, node) for node in list(graph.graph.nodes))
    if norms or convolutions or shortcuts:
        graph.graph.lint()
        graph.recompile()
    return len(norms) + len(convolutions) + shortcuts


def _is_convolution(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target not in _CONVOLUTIONS:
        return False
    given = _given(node, _CONVOLUTION)
    x, weight, y = _value(given["input"]), _value(given["weight"]), _value(node)
    stride, padding, dilation = (_both(given[name]) for name in ("stride", "padding", "dilation"))
    return (
        x is not None
        and weight is not None
        and y is not None
        and y.dtype == torch.bfloat16
        and given["bias"] is None
        and stride is not None
        and (padding, dilation, given["groups"]) == (1, 1, 1)
        and weight.requires_grad
        and _sized(x)
        and convolution.fits(x, weight, stride)
    )


def _both(given: Any) -> int | None:
    """What both sides of an image are given, as a number; None where they differ, or it is a word."""
    first = given[0] if isinstance(given, tuple | list) and len(set(given)) == 1 else given
    return first if isinstance(first, int) else None


def _is_batch_norm(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target is not F.batch_norm:
        return False
    given = _given(node, _BATCH_NORM)
    x, weight, bias = (_value(given[name]) for name in ("input", "weight", "bias"))
    return (
        given["training"] is True
        and isinstance(given["momentum"], float | int)
        and x is not None
        and _sized(x)
        and batch_norm.fits(x, weight, bias)
    )


def _replace_shortcut(graph: fx.Graph, node: fx.Node) -> bool:
    """Put the operator in the place of F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, after)); was it that?"""
    if node.op != "call_function" or node.target not in _PADS or not isinstance(node.args[0], fx.Node):
        return False
    pixels, sides = node.args[0], tuple(cast("Sequence[int]", node.args[1]))
    zeros = (*node.args[2:], "constant")[0] == "constant" and not any(node.args[3:]) and not node.kwargs
    sliced = pixels.op == "call_function" and pixels.target is operator.getitem
    if not (zeros and sliced and pixels.args[1] == _HALVES and len(pixels.users) == 1):
        return False
    x = _value(pixels.args[0])
    if (
        len(sides) != 6
        or any(sides[:4])
        or min(sides) < 0
        or x is None
        or not (_sized(x) and subsample.fits(x))
    ):
        return False
    node.target, node.args = torch.ops.resode.subsample.default, (pixels.args[0], *sides[4:])
    graph.erase_node(pixels)
    return True


def _sized(x: Tensor) -> bool:
    """Whether no side is left open."""
    return all(isinstance(n, int) for n in x.shape)


def _given(node: fx.Node, defaults: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    return defaults | dict(zip(defaults, node.args, strict=False)) | node.kwargs


def _value(node: Any) -> Tensor | None:
    """The tensor that a node stands for, without its numbers."""
    found = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return found if isinstance(found, Tensor) else None


def _replace(graph: fx.Graph, node: fx.Node, gather: bool) -> list[Moved]:
    """Replace a norm and what follows it with the operator.

    Returns the running statistics to update at the end of the graph; without `gather` each is updated here.
    """
    given = _given(node, _BATCH_NORM)
    kept = (given["running_mean"], given["running_var"])
    alone = gather and all(
        isinstance(each, fx.Node) and each.op == "placeholder" and len(each.users) == 1 for each in kept
    )
    following: list[Moved] = []
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
        if kept[0] is not None:
            now = [graph.call_method("detach", (each,)) for each in (mean, variance)]
            momentum = float(given["momentum"])
            if alone:
                following = [*zip(kept, now, (momentum, momentum), strict=True)]
            else:
                for running, found in zip(kept, now, strict=True):
                    graph.call_method("lerp_", (running, found, momentum))
    y.meta = dict(last.meta)
    last.replace_all_uses_with(y)
    for done in (after if relu else None, addition if other is not None else None, node):
        if done is not None:
            graph.erase_node(done)
    return following


def _alike(one: fx.Node, other: fx.Node) -> bool:
    """Whether both are tensors of one shape and type."""
    mine, its = one.meta.get("val"), other.meta.get("val")
    if not isinstance(mine, Tensor) or not isinstance(its, Tensor):
        return False
    return _sized(mine) and mine.dtype == its.dtype and mine.shape == its.shape


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
