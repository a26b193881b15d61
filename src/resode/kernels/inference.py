"""A trained network read as a program for matrix units, or vectors.

The network is exported to a graph; what depends on parameters alone is computed once, every BatchNorm becomes
a part of the convolution before it, and an addition and a ReLU a part of the step whose values they take.
Taken are networks of 3x3 and 1x1 convolutions that keep the image or halve it, norms that are constants,
ReLU, additions, multiples, subsampling with channels of zeros, and at the end an average over the pixels and
a linear layer; images have up to four channels.
"""

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from resode.kernels import convolution
from resode.kernels.program import ENTRANCE, Logits, Mean, Program, Shape, Step, View

# Weights, up to which it was measured to be faster than torch's compiler.
HEAVIEST = {"matrix units": 12_000_000, "vectors": 2_000_000}
LARGEST = 1_000_000  # bytes of an image in all places, for the same reason
_aten = torch.ops.aten


class Unfit(Exception):
    """The network has an operation that programs have not."""


def program(module: nn.Module, x: Tensor) -> Program | None:
    """The program of a module in evaluation mode for images like `x`; None where it has none or no gain."""
    weights = sum(p.numel() for p in module.parameters())
    if weights > HEAVIEST.get(convolution.products() or "", -1):
        return None
    try:
        made = read(module, x)
    except Unfit:
        return None
    return made if made.bytes() <= LARGEST else None


def read(module: nn.Module, x: Tensor) -> Program:
    """The program of a module in evaluation mode, for images like `x`; `program` without its conditions.

    Raises:
        Unfit: the network has an operation that programs have not.
    """
    if x.dim() != 4 or x.shape[1] > ENTRANCE or any(p.dtype != torch.float32 for p in module.parameters()):
        raise Unfit
    with torch.autocast("cpu", enabled=False), torch.inference_mode(False), torch.no_grad():
        try:
            graph = torch.export.export(module, (torch.zeros(1, *x.shape[1:]),), strict=False).module()
        except Exception as error:  # of many kinds; what cannot be exported is no program
            raise Unfit from error
        return _Reader(graph, Shape(*x.shape[1:])).read()


class _Reader:
    """Goes through a graph, in which a value is a constant, a view of a place, or a step not made yet."""

    def __init__(self, graph: fx.GraphModule, image: Shape) -> None:
        self.graph = graph
        self.shapes = [image]
        self.steps: list[tuple[Step, int]] = []
        self.values: dict[fx.Node, Any] = {}

    def read(self) -> Program:
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
        raise Unfit

    def _value(self, node: fx.Node) -> Any:
        """By the rule of its operation, which is given constants as they are and all else as nodes."""
        values = {n: self.values[n] for n in node.all_input_nodes}
        constants = {n: v for n, v in values.items() if not isinstance(v, View | Step | Mean | Logits)}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: constants.get(n, n))
        try:
            if len(constants) == len(values):  # of parameters alone
                if not _is_pure(node.target):
                    raise Unfit
                return cast("Callable[..., Any]", node.target)(*args, **kwargs)
            return _RULES[node.target](self, _shape(node), *args, **kwargs)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise Unfit from error  # another operation, or other arguments

    def view(self, node: fx.Node) -> View:
        """A node's value as a view; a step is made."""
        value = self.values[node]
        if isinstance(value, Step):
            self.shapes.append(value.shape)
            self.steps.append((value, len(self.shapes) - 1))
            value = self.values[node] = View(len(self.shapes) - 1, value.shape)
        if not isinstance(value, View):
            raise Unfit
        return value

    def place(self, node: fx.Node) -> int:
        """The place that is a node's value."""
        view = self.view(node)
        if view != View(view.place, self.shapes[view.place]):
            raise Unfit
        return view.place

    def is_open(self, node: fx.Node) -> bool:
        """Whether a node's value is a step that nobody else wants and a sum or a norm can still go into."""
        value = self.values[node]
        return isinstance(value, Step) and len(node.users) == 1 and not value.relu and value.r is None

    def step(self, node: fx.Node) -> Step:
        """A node's value as a step that a sum or a norm can go into: itself, or a copy of what it made."""
        if self.is_open(node):
            step: Step = self.values[node]
            return step
        place = self.place(node)
        shape = self.shapes[place]
        return Step(_inner(place), shape, torch.zeros(shape.channels), scale=torch.ones(shape.channels))

    def convolution(
        self, shape: Shape, x: fx.Node, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
        padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> Step:  # fmt: skip
        kernel = weight.shape[2]
        fits = kernel in (1, 3) and weight.shape[3] == kernel and _one(padding) == kernel // 2
        if not fits or _one(dilation) != 1 or groups != 1 or _one(stride) > 2:
            raise Unfit
        bias = torch.zeros(len(weight)) if bias is None else bias
        return Step(self.place(x), shape, bias, weight=weight, stride=_one(stride))

    def batch_norm(
        self, shape: Shape, x: fx.Node, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None,
        variance: Tensor | None, training: bool, momentum: float, eps: float, cudnn: bool,
    ) -> Step:  # fmt: skip
        if training or mean is None or variance is None:
            raise Unfit
        factor = (variance + eps).rsqrt() * (1 if weight is None else weight)
        return self.step(x).times(factor, (0 if bias is None else bias) - mean * factor)

    def relu(self, shape: Shape, x: fx.Node) -> Step:
        value = self.values[x]
        added = isinstance(value, Step) and len(x.users) == 1  # it may have a sum
        return replace(value if added else self.step(x), relu=True)

    def relu_(self, shape: Shape, x: fx.Node) -> Step:
        self._alone(x)
        return self.relu(shape, x)

    def add_(self, shape: Shape, x: fx.Node, y: fx.Node, alpha: float = 1) -> Step:
        self._alone(x)
        return self.add(shape, x, y, alpha)

    def _alone(self, x: fx.Node) -> None:
        """Nobody else sees that it is changed."""
        if not isinstance(self.values[x], Step) or len(x.users) > 1:
            raise Unfit

    def add(self, shape: Shape, x: fx.Node, y: fx.Node, alpha: float = 1) -> Step:
        """Of x and alpha y: one of the two stays open for the sum, and the other one is made."""
        first, second = (x, y) if alpha == 1 and self.is_open(x) else (y, x)
        other = self.view(second)
        step = self.step(first).times(alpha, 0)
        _inner(other.place)
        if not step.shape == other.shape == shape or other.rows != other.columns:
            raise Unfit
        return replace(step, r=other)

    def subtract(self, shape: Shape, x: fx.Node, y: fx.Node, alpha: float = 1) -> Step:
        return self.add(shape, x, y, -alpha)

    def multiply(self, shape: Shape, x: Any, y: Any) -> Step:
        node, factor = (x, y) if isinstance(x, fx.Node) else (y, x)
        if isinstance(factor, Tensor) and factor.numel() > 1:
            raise Unfit
        return self.step(node).times(float(factor), 0)

    def subsample(
        self, shape: Shape, x: fx.Node, dim: int, start: int | None, end: int | None, every: int = 1
    ) -> View:
        """Of rows, or of columns."""
        view = self.view(x)
        size = {2: view.shape.height, 3: view.shape.width}[dim]
        if start not in (0, None) or (end is not None and end < size) or view.before:
            raise Unfit
        rows, columns = (every, 1) if dim == 2 else (1, every)
        return replace(view, shape=shape, rows=view.rows * rows, columns=view.columns * columns)

    def pad(
        self, shape: Shape, x: fx.Node, pad: list[int], mode: str = "constant", value: float | None = None
    ) -> View:
        """With channels of zeros."""
        view = self.view(x)
        if mode != "constant" or value or len(pad) != 6 or any(pad[:4]) or min(pad) < 0 or view.before:
            raise Unfit
        return replace(view, shape=shape, before=pad[4])

    def mean(self, shape: None, x: fx.Node, dims: list[int], keep: bool = False) -> Mean:
        if sorted(dim % 4 for dim in dims) != [2, 3]:
            raise Unfit
        return Mean(_inner(self.place(x)))

    def pool(self, shape: None, x: fx.Node, size: Any) -> Mean:
        if _one(size) != 1:
            raise Unfit
        return Mean(_inner(self.place(x)))

    def dropout(self, shape: Any, x: fx.Node, p: float, train: bool) -> View:
        if train:
            raise Unfit
        return self.view(x)

    def flatten(self, shape: Any, x: fx.Node, *_: Any) -> Mean:
        """In whatever form: `linear` sees to it that it is the mean again."""
        if not isinstance(self.values[x], Mean):
            raise Unfit
        mean: Mean = self.values[x]
        return mean

    def linear(self, shape: Any, x: fx.Node, weight: Tensor, bias: Tensor | None = None) -> Logits:
        mean = self.flatten(shape, x)
        if x.meta["val"].shape != (1, self.shapes[mean.place].channels):
            raise Unfit
        return Logits(mean, weight.clone(), None if bias is None else bias.clone())


_RULES: dict[Any, Callable[..., Any]] = {
    _aten.conv2d.default: _Reader.convolution,
    _aten.batch_norm.default: _Reader.batch_norm,
    _aten.relu.default: _Reader.relu,
    _aten.relu_.default: _Reader.relu_,
    _aten.add.Tensor: _Reader.add,
    _aten.add_.Tensor: _Reader.add_,
    _aten.sub.Tensor: _Reader.subtract,
    _aten.mul.Tensor: _Reader.multiply,
    _aten.slice.Tensor: _Reader.subsample,
    _aten.pad.default: _Reader.pad,
    _aten.dropout.default: _Reader.dropout,
    _aten.mean.dim: _Reader.mean,
    _aten.adaptive_avg_pool2d.default: _Reader.pool,
    _aten.flatten.using_ints: _Reader.flatten,
    _aten.view.default: _Reader.flatten,
    _aten.reshape.default: _Reader.flatten,
    _aten.linear.default: _Reader.linear,
}


def _is_pure(operation: Any) -> bool:
    """Whether it changes nothing and has the same result each time."""
    if operation is operator.getitem:
        return True
    if not isinstance(operation, torch._ops.OpOverload):
        return False
    return not operation._schema.is_mutable and torch.Tag.nondeterministic_seeded not in operation.tags


def _inner(place: int) -> int:
    """A place that is not the image, which has a layout of its own."""
    if place == 0:
        raise Unfit
    return place


def _one(value: Any) -> int:
    """The number, of which there may be two that are the same."""
    numbers = {*value} if isinstance(value, list | tuple) else {value}
    if len(numbers) != 1 or not all(isinstance(n, int) for n in numbers):
        raise Unfit
    (number,) = numbers
    return int(number)


def _shape(node: fx.Node) -> Shape | None:
    size = node.meta["val"].shape
    return Shape(*size[1:]) if len(size) == 4 else None
