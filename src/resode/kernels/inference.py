"""Translation of a trained network into an inference program (`resode.kernels.program`).

The network is exported to a graph. What depends on parameters alone is computed once; a BatchNorm is folded
into the convolution before it; an addition and a ReLU are fused with the step whose result they use. A
network may consist of 3x3 and 1x1 convolutions of stride 1 or 2, BatchNorm with fixed statistics, ReLU,
additions, scalar multiples and subsampling with channels of zeros, with an average over the pixels and a
linear layer at its end; images have up to four channels.
"""

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from resode.kernels import convolution
from resode.kernels.program import INPUT_CHANNELS, Logits, Mean, Program, Shape, Step, View

# Largest number of weights for which a program was measured to be faster than torch's compiler.
MOST_WEIGHTS = {"AMX": 12_000_000, "AVX-512 BF16": 2_000_000}
MOST_BYTES = 1_000_000  # of an image in all buffers, measured likewise
_aten = torch.ops.aten


class Unsupported(Exception):
    """The network has an operation that programs do not have."""


def program(module: nn.Module, x: Tensor) -> Program | None:
    """The program of a module in evaluation mode for images like `x`; None if unsupported or no faster."""
    weights = sum(p.numel() for p in module.parameters())
    if weights > MOST_WEIGHTS.get(convolution.bf16_instructions() or "", -1):
        return None
    try:
        found = translate(module, x)
    except Unsupported:
        return None
    return found if found.bytes() <= MOST_BYTES else None


def translate(module: nn.Module, x: Tensor) -> Program:
    """The program of a module in evaluation mode for images like `x`, whether or not it is faster.

    Raises:
        Unsupported: the network has an operation that programs do not have.
    """
    if (
        x.dim() != 4
        or x.shape[1] > INPUT_CHANNELS
        or any(p.dtype != torch.float32 for p in module.parameters())
    ):
        raise Unsupported
    with torch.autocast("cpu", enabled=False), torch.inference_mode(False), torch.no_grad():
        try:
            graph = torch.export.export(module, (torch.zeros(1, *x.shape[1:]),), strict=False).module()
        except Exception as error:  # of many kinds: what cannot be exported cannot be translated
            raise Unsupported from error
        return _Translator(graph, Shape(*x.shape[1:])).translate()


class _Translator:
    """Walks through a graph; a node is a constant, a view of a buffer, or a step that is not stored yet."""

    def __init__(self, graph: fx.GraphModule, image: Shape) -> None:
        self.graph = graph
        self.shapes = [image]
        self.steps: list[tuple[Step, int]] = []
        self.values: dict[fx.Node, Any] = {}

    def translate(self) -> Program:
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = View(0, self.shapes[0])
            elif node.op == "get_attr":
                value = operator.attrgetter(node.target)(self.graph)
                self.values[node] = value.detach() if isinstance(value, Tensor) else value
            elif node.op == "call_function" and (node.users or not _is_pure(node.target)):
                self.values[node] = self._value(node)
            elif node.op == "output":
                match [self.values[each] for each in node.all_input_nodes]:
                    case [Logits() as end]:
                        return Program(end, self.steps, self.shapes)
            elif node.users:  # a call of another kind
                break
        raise Unsupported

    def _value(self, node: fx.Node) -> Any:
        """Apply the rule of an operation, with constants as values and everything else as nodes."""
        values = {n: self.values[n] for n in node.all_input_nodes}
        constants = {n: v for n, v in values.items() if not isinstance(v, View | Step | Mean | Logits)}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: constants.get(n, n))
        try:
            if len(constants) == len(values):  # depends on parameters alone
                if not _is_pure(node.target):
                    raise Unsupported
                return cast("Callable[..., Any]", node.target)(*args, **kwargs)
            return _RULES[node.target](self, _shape(node), *args, **kwargs)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise Unsupported from error  # another operation, or other arguments

    # ---------------------------------------------------------------- values of nodes

    def view(self, node: fx.Node) -> View:
        """The value of a node as a view; a step is stored in a buffer of its own first."""
        value = self.values[node]
        if isinstance(value, Step):
            self.shapes.append(value.shape)
            self.steps.append((value, len(self.shapes) - 1))
            value = self.values[node] = View(len(self.shapes) - 1, value.shape)
        if not isinstance(value, View):
            raise Unsupported
        return value

    def buffer(self, node: fx.Node) -> int:
        """The buffer that holds exactly the value of a node."""
        view = self.view(node)
        if view != View(view.buffer, self.shapes[view.buffer]):
            raise Unsupported
        return view.buffer

    def can_fuse(self, node: fx.Node) -> bool:
        """Whether a sum or a norm can be fused with the value of a node: a step that has one user."""
        value = self.values[node]
        return isinstance(value, Step) and len(node.users) == 1 and not value.relu and value.r is None

    def step(self, node: fx.Node) -> Step:
        """The value of a node as a step that more can be fused with: itself, or a copy from its buffer."""
        if self.can_fuse(node):
            step: Step = self.values[node]
            return step
        buffer = self.buffer(node)
        shape = self.shapes[buffer]
        return Step(_not_image(buffer), shape, torch.zeros(shape.channels), scale=torch.ones(shape.channels))

    # ---------------------------------------------------------------- rules

    def convolution(
        self, shape: Shape, x: fx.Node, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
        padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> Step:  # fmt: skip
        kernel = weight.shape[2]
        supported = kernel in (1, 3) and weight.shape[3] == kernel and _single(padding) == kernel // 2
        if not supported or _single(dilation) != 1 or groups != 1 or _single(stride) > 2:
            raise Unsupported
        bias = torch.zeros(len(weight)) if bias is None else bias
        return Step(self.buffer(x), shape, bias, weight=weight, stride=_single(stride))

    def batch_norm(
        self, shape: Shape, x: fx.Node, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None,
        variance: Tensor | None, training: bool, momentum: float, eps: float, cudnn: bool,
    ) -> Step:  # fmt: skip
        if training or mean is None or variance is None:
            raise Unsupported
        factor = (variance + eps).rsqrt() * (1 if weight is None else weight)
        return self.step(x).affine(factor, (0 if bias is None else bias) - mean * factor)

    def relu(self, shape: Shape, x: fx.Node) -> Step:
        value = self.values[x]
        fused = isinstance(value, Step) and len(x.users) == 1  # also after a sum
        return replace(value if fused else self.step(x), relu=True)

    def relu_(self, shape: Shape, x: fx.Node) -> Step:
        self._require_only_user(x)
        return self.relu(shape, x)

    def add_(self, shape: Shape, x: fx.Node, y: fx.Node, alpha: float = 1) -> Step:
        self._require_only_user(x)
        return self.add(shape, x, y, alpha)

    def _require_only_user(self, x: fx.Node) -> None:
        """An operation in place is one out of place if nothing else reads its input."""
        if not isinstance(self.values[x], Step) or len(x.users) > 1:
            raise Unsupported

    def add(self, shape: Shape, x: fx.Node, y: fx.Node, alpha: float = 1) -> Step:
        """Fuse x + alpha y with the step of one of the two; the other one is stored."""
        first, second = (x, y) if alpha == 1 and self.can_fuse(x) else (y, x)
        other = self.view(second)
        step = self.step(first).affine(alpha, 0)
        _not_image(other.buffer)
        if not step.shape == other.shape == shape or other.row_stride != other.column_stride:
            raise Unsupported
        return replace(step, r=other)

    def subtract(self, shape: Shape, x: fx.Node, y: fx.Node, alpha: float = 1) -> Step:
        return self.add(shape, x, y, -alpha)

    def multiply(self, shape: Shape, x: Any, y: Any) -> Step:
        node, factor = (x, y) if isinstance(x, fx.Node) else (y, x)
        if isinstance(factor, Tensor) and factor.numel() > 1:
            raise Unsupported
        return self.step(node).affine(float(factor), 0)

    def subsample(
        self, shape: Shape, x: fx.Node, dim: int, start: int | None, end: int | None, step: int = 1
    ) -> View:
        """Every `step`-th row or column."""
        view = self.view(x)
        size = {2: view.shape.height, 3: view.shape.width}[dim]
        if start not in (0, None) or (end is not None and end < size) or view.zeros_before:
            raise Unsupported
        rows, columns = (step, 1) if dim == 2 else (1, step)
        return replace(
            view,
            shape=shape,
            row_stride=view.row_stride * rows,
            column_stride=view.column_stride * columns,
        )

    def pad(
        self, shape: Shape, x: fx.Node, pad: list[int], mode: str = "constant", value: float | None = None
    ) -> View:
        """Channels of zeros before and behind."""
        view = self.view(x)
        channels_alone = len(pad) == 6 and not any(pad[:4]) and min(pad) >= 0
        if mode != "constant" or value or not channels_alone or view.zeros_before:
            raise Unsupported
        return replace(view, shape=shape, zeros_before=pad[4])

    def mean(self, shape: None, x: fx.Node, dims: list[int], keep: bool = False) -> Mean:
        if sorted(dim % 4 for dim in dims) != [2, 3]:
            raise Unsupported
        return Mean(_not_image(self.buffer(x)))

    def pool(self, shape: None, x: fx.Node, size: Any) -> Mean:
        if _single(size) != 1:
            raise Unsupported
        return Mean(_not_image(self.buffer(x)))

    def dropout(self, shape: Any, x: fx.Node, p: float, train: bool) -> View:
        if train:
            raise Unsupported
        return self.view(x)

    def flatten(self, shape: Any, x: fx.Node, *_: Any) -> Mean:
        """Any reshaping of the mean; `linear` checks that the result is (N, channels)."""
        if not isinstance(self.values[x], Mean):
            raise Unsupported
        mean: Mean = self.values[x]
        return mean

    def linear(self, shape: Any, x: fx.Node, weight: Tensor, bias: Tensor | None = None) -> Logits:
        mean = self.flatten(shape, x)
        if x.meta["val"].shape != (1, self.shapes[mean.buffer].channels):
            raise Unsupported
        return Logits(mean, weight.clone(), None if bias is None else bias.clone())


_RULES: dict[Any, Callable[..., Any]] = {
    _aten.conv2d.default: _Translator.convolution,
    _aten.batch_norm.default: _Translator.batch_norm,
    _aten.relu.default: _Translator.relu,
    _aten.relu_.default: _Translator.relu_,
    _aten.add.Tensor: _Translator.add,
    _aten.add_.Tensor: _Translator.add_,
    _aten.sub.Tensor: _Translator.subtract,
    _aten.mul.Tensor: _Translator.multiply,
    _aten.slice.Tensor: _Translator.subsample,
    _aten.pad.default: _Translator.pad,
    _aten.dropout.default: _Translator.dropout,
    _aten.mean.dim: _Translator.mean,
    _aten.adaptive_avg_pool2d.default: _Translator.pool,
    _aten.flatten.using_ints: _Translator.flatten,
    _aten.view.default: _Translator.flatten,
    _aten.reshape.default: _Translator.flatten,
    _aten.linear.default: _Translator.linear,
}


def _is_pure(operation: Any) -> bool:
    """Whether it has no side effects and the same result each time."""
    if operation is operator.getitem:
        return True
    if not isinstance(operation, torch._ops.OpOverload):
        return False
    return not operation._schema.is_mutable and torch.Tag.nondeterministic_seeded not in operation.tags


def _not_image(buffer: int) -> int:
    """Refuse buffer 0: the image has a layout of its own, which convolutions alone can read."""
    if buffer == 0:
        raise Unsupported
    return buffer


def _single(value: Any) -> int:
    """The number that holds for rows and columns alike."""
    numbers = {*value} if isinstance(value, list | tuple) else {value}
    if len(numbers) != 1 or not all(isinstance(n, int) for n in numbers):
        raise Unsupported
    (number,) = numbers
    return int(number)


def _shape(node: fx.Node) -> Shape | None:
    size = node.meta["val"].shape
    return Shape(*size[1:]) if len(size) == 4 else None
